//! Chunks become the bytes that were announced: never more are taken, and their room is made once.

use crate::convert::{InvalidMessage, ReportHeader};
use crate::v1;
use crate::v1::report_chunk::Part;

/// Bytes that come in pieces, of a length that is known before the first.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<u8>,
    want: usize,
}

/// More or fewer bytes than were announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are {problem} than the {want} bytes that were announced")]
pub struct WrongLength {
    want: usize,
    problem: &'static str,
}

impl Pieces {
    /// Room for `want` bytes. Growing it piece by piece would leave holes in the heap.
    #[must_use]
    pub fn new(want: usize) -> Self {
        Self { bytes: Vec::with_capacity(want), want }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// A piece that goes beyond the announced length; nothing of it is taken.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), WrongLength> {
        if piece.len() > self.want - self.bytes.len() {
            return Err(WrongLength { want: self.want, problem: "more" });
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// All bytes.
    ///
    /// # Errors
    /// Fewer bytes than were announced.
    pub fn finish(self) -> Result<Vec<u8>, WrongLength> {
        if self.bytes.len() < self.want {
            return Err(WrongLength { want: self.want, problem: "fewer" });
        }
        Ok(self.bytes)
    }
}

/// A report whose chunks make no payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenReport {
    /// A first chunk that is no header, a second header, or a chunk of nothing.
    #[error("the report does not begin with a header, or it has two")]
    Header,
    /// A header that breaks the contract.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    /// Another length than the header announced.
    #[error("the payload is not as its header says: {0}")]
    Length(#[from] WrongLength),
}

/// A report on its way: a header, then the payload's bytes, bounded by the header, and that by the
/// run's layout.
#[derive(Debug)]
pub struct ReportGather {
    payload_max: usize,
    begun: Option<(ReportHeader, Pieces)>,
}

impl ReportGather {
    /// Nothing yet, of a payload of at most `payload_max` bytes.
    #[must_use]
    pub fn new(payload_max: usize) -> Self {
        Self { payload_max, begun: None }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// A chunk out of order, a header that is refused, or more bytes than it announced.
    pub fn push(&mut self, chunk: &v1::ReportChunk) -> Result<(), BrokenReport> {
        match (&mut self.begun, &chunk.part) {
            (None, Some(Part::Header(header))) => {
                let header = ReportHeader::check(header, self.payload_max)?;
                let pieces = Pieces::new(header.payload_bytes);
                self.begun = Some((header, pieces));
                Ok(())
            }
            (Some((_, pieces)), Some(Part::Data(data))) => Ok(pieces.push(data)?),
            _ => Err(BrokenReport::Header),
        }
    }

    /// The header and the payload's bytes, once the stream has ended.
    ///
    /// # Errors
    /// No header, or fewer bytes than it announced.
    pub fn finish(self) -> Result<(ReportHeader, Vec<u8>), BrokenReport> {
        let (header, pieces) = self.begun.ok_or(BrokenReport::Header)?;
        Ok((header, pieces.finish()?))
    }
}

#[cfg(test)]
mod tests {
    use floret_core::{Digest, Round};

    use super::*;

    fn header(payload_bytes: usize) -> v1::ReportChunk {
        let payload_digest = Digest::of(b"p");
        let header = ReportHeader {
            run: "run".parse().unwrap(),
            round: Round(1),
            num_examples: 2,
            payload_bytes,
            payload_digest,
        };
        v1::ReportChunk { part: Some(Part::Header(header.into())) }
    }

    fn data(bytes: &[u8]) -> v1::ReportChunk {
        v1::ReportChunk { part: Some(Part::Data(bytes.to_vec().into())) }
    }

    fn gather(chunks: &[v1::ReportChunk]) -> Result<Vec<u8>, BrokenReport> {
        let mut gather = ReportGather::new(6);
        for chunk in chunks {
            gather.push(chunk)?;
        }
        gather.finish().map(|(_, payload)| payload)
    }

    #[test]
    fn chunks_of_any_size_are_joined_in_order() {
        let chunks = [header(6), data(b"ab"), data(b""), data(b"cdef")];
        assert_eq!(gather(&chunks).unwrap(), b"abcdef");
        assert_eq!(gather(&[header(0)]).unwrap(), b"");
    }

    #[test]
    fn a_header_comes_first_and_once() {
        let empty = v1::ReportChunk { part: None };
        for chunks in [
            vec![],
            vec![data(b"ab"), header(2)],
            vec![header(2), header(2)],
            vec![empty.clone()],
            vec![header(2), empty],
        ] {
            assert_eq!(gather(&chunks).unwrap_err(), BrokenReport::Header);
        }
    }

    #[test]
    fn the_payload_has_the_announced_length_and_no_more_room_is_made() {
        let error = |chunks: &[v1::ReportChunk]| gather(chunks).unwrap_err().to_string();
        assert!(error(&[header(3), data(b"ab")]).contains("fewer than the 3 bytes"));
        assert!(error(&[header(3), data(b"ab"), data(b"cd")]).contains("more than the 3 bytes"));
        assert!(error(&[header(7)]).contains("payload_bytes is 7, more than the layout's 6"));
        let mut pieces = Pieces::new(3);
        assert!(pieces.push(&[0; 1000]).is_err());
        assert_eq!(pieces.finish().unwrap_err(), WrongLength { want: 3, problem: "fewer" });
    }
}
