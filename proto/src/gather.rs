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
        Self::after(Vec::new(), want)
    }

    /// The first bytes of `want`, and room for the rest.
    fn after(mut bytes: Vec<u8>, want: usize) -> Self {
        bytes.truncate(want);
        bytes.reserve_exact(want - bytes.len());
        Self { bytes, want }
    }

    /// How many bytes came so far.
    #[must_use]
    pub fn received(&self) -> usize {
        self.bytes.len()
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
        self.check().map(|()| self.bytes)
    }

    fn check(&self) -> Result<(), WrongLength> {
        match self.bytes.len() == self.want {
            true => Ok(()),
            false => Err(WrongLength { want: self.want, problem: "fewer" }),
        }
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
    /// A report that goes on beyond what came before.
    #[error(
        "the report goes on at byte {offset}, and {kept} bytes of it are here: ask where it stands, \
         and go on there"
    )]
    Offset {
        /// Where it goes on.
        offset: usize,
        /// Bytes that are here.
        kept: usize,
    },
    /// Another length than the header announced.
    #[error("the payload is not as its header says: {0}")]
    Length(#[from] WrongLength),
}

/// The header that a report begins with, for a payload of at most `payload_max` bytes.
///
/// # Errors
/// A chunk that is no header, or a header that is refused.
pub fn report_header(
    chunk: &v1::ReportChunk,
    payload_max: usize,
) -> Result<ReportHeader, BrokenReport> {
    match &chunk.part {
        Some(Part::Header(header)) => Ok(ReportHeader::check(header, payload_max)?),
        _ => Err(BrokenReport::Header),
    }
}

/// A report's payload on its way, bounded by its header, and that by the run's layout.
#[derive(Debug)]
pub struct ReportGather(Pieces);

impl ReportGather {
    /// The payload that `header` announces, of which `kept` came before; what of that lies beyond
    /// the header's offset is sent again.
    ///
    /// # Errors
    /// An offset beyond what was kept.
    pub fn new(header: &ReportHeader, mut kept: Vec<u8>) -> Result<Self, BrokenReport> {
        let offset = header.offset;
        if offset > kept.len() {
            return Err(BrokenReport::Offset { offset, kept: kept.len() });
        }
        kept.truncate(offset);
        Ok(Self(Pieces::after(kept, header.payload_bytes)))
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// A chunk that holds no data, or more bytes than the header announced.
    pub fn push(&mut self, chunk: &v1::ReportChunk) -> Result<(), BrokenReport> {
        match &chunk.part {
            Some(Part::Data(data)) => Ok(self.0.push(data)?),
            _ => Err(BrokenReport::Header),
        }
    }

    /// What came so far.
    #[must_use]
    pub fn into_received(self) -> Vec<u8> {
        self.0.bytes
    }

    /// Whether the payload is whole.
    ///
    /// # Errors
    /// Fewer bytes than the header announced.
    pub fn check(&self) -> Result<(), BrokenReport> {
        Ok(self.0.check()?)
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
            num_steps: 1,
            payload_bytes,
            payload_digest,
            offset: 0,
        };
        v1::ReportChunk { part: Some(Part::Header(header.into())) }
    }

    fn data(bytes: &[u8]) -> v1::ReportChunk {
        v1::ReportChunk { part: Some(Part::Data(bytes.to_vec().into())) }
    }

    fn gather(chunks: &[v1::ReportChunk]) -> Result<Vec<u8>, BrokenReport> {
        let (first, rest) = chunks.split_first().ok_or(BrokenReport::Header)?;
        let mut gather = ReportGather::new(&report_header(first, 6)?, Vec::new())?;
        for chunk in rest {
            gather.push(chunk)?;
        }
        gather.check()?;
        Ok(gather.into_received())
    }

    #[test]
    fn a_payload_goes_on_where_it_broke() {
        let chunk = header(6);
        let header = |offset| ReportHeader {
            offset,
            ..report_header(&chunk, 6).unwrap_or_else(|_| panic!())
        };
        for offset in 0..=4 {
            let mut gather = ReportGather::new(&header(offset), b"abcd".to_vec()).unwrap();
            gather.push(&data(&b"abcdef"[offset..])).unwrap();
            gather.check().unwrap();
            assert_eq!(gather.into_received(), b"abcdef", "from byte {offset}");
        }
        let error = ReportGather::new(&header(5), b"abcd".to_vec()).unwrap_err().to_string();
        assert!(error.contains("goes on at byte 5, and 4 bytes"), "{error}");
        let mut gather = ReportGather::new(&header(2), b"abcd".to_vec()).unwrap();
        assert!(gather.push(&data(b"cdefg")).is_err());
        assert_eq!(gather.into_received(), b"ab");
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
