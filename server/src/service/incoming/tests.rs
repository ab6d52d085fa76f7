use floret_proto::v1::report_chunk::Part;
use tempfile::TempDir;

use super::*;

const PAYLOAD: &[u8] = b"abcdefghij";

fn open(uploads: usize, bytes: u64) -> (TempDir, Arc<Incoming>) {
    let dir = tempfile::tempdir().unwrap();
    let incoming = Incoming::open(dir.path().join("incoming"), Bounds { uploads, bytes }).unwrap();
    incoming.round_is(Some(Round(1)));
    (dir, Arc::new(incoming))
}

fn header(offset: usize) -> ReportHeader {
    ReportHeader {
        run: "run".parse().unwrap(),
        round: Round(1),
        num_examples: 1,
        num_steps: 1,
        payload_bytes: PAYLOAD.len(),
        payload_digest: Digest::of(PAYLOAD),
        offset,
    }
}

fn key(client: &str) -> Key {
    let payload_digest = Digest::of(PAYLOAD);
    Key { client: client.parse().unwrap(), round: Round(1), payload_digest }
}

fn data(bytes: &[u8]) -> v1::ReportChunk {
    v1::ReportChunk { part: Some(Part::Data(bytes.to_vec().into())) }
}

fn files(dir: &TempDir) -> usize {
    fs::read_dir(dir.path().join("incoming")).unwrap().count()
}

/// An upload that breaks after `bytes`.
fn broken(incoming: &Arc<Incoming>, client: &str, bytes: &[u8]) {
    let upload = incoming.begin(client.parse().unwrap(), &header(0)).unwrap();
    upload.push(&data(bytes)).unwrap();
}

#[test]
fn a_broken_upload_goes_on_where_it_broke() {
    let (dir, incoming) = open(4, 100);
    broken(&incoming, "a", b"abcd");
    assert_eq!((incoming.received(&key("a")), files(&dir)), (4, 1));
    assert_eq!(incoming.received(&key("b")), 0);
    let other = Key { payload_digest: Digest::of(b"other"), ..key("a") };
    assert_eq!(incoming.received(&other), 0);
    let upload = incoming.begin("a".parse().unwrap(), &header(4)).unwrap();
    upload.push(&data(b"efg")).unwrap();
    drop(upload);
    assert_eq!(incoming.received(&key("a")), 7);
    let upload = incoming.begin("a".parse().unwrap(), &header(6)).unwrap();
    upload.push(&data(b"ghij")).unwrap();
    assert_eq!(upload.finish().unwrap().unwrap(), PAYLOAD);
    assert_eq!((incoming.received(&key("a")), files(&dir)), (0, 0));
}

#[test]
fn an_upload_from_the_start_or_of_other_bytes_drops_what_was_kept() {
    let (dir, incoming) = open(4, 100);
    broken(&incoming, "a", b"wrong");
    let upload = incoming.begin("a".parse().unwrap(), &header(0)).unwrap();
    upload.push(&data(PAYLOAD)).unwrap();
    assert_eq!(upload.finish().unwrap().unwrap(), PAYLOAD);
    broken(&incoming, "a", b"abcd");
    let other = ReportHeader { payload_digest: Digest::of(b"other"), ..header(4) };
    let error = incoming.begin("a".parse().unwrap(), &other).unwrap_err();
    assert_eq!(error, BrokenReport::Offset { offset: 4, kept: 0 });
    assert_eq!(files(&dir), 0);
}

#[test]
fn a_connection_that_nobody_missed_gives_its_bytes_up() {
    let (_dir, incoming) = open(4, 100);
    let lost = incoming.begin("a".parse().unwrap(), &header(0)).unwrap();
    lost.push(&data(b"abcde")).unwrap();
    assert_eq!(incoming.received(&key("a")), 5);
    assert!(lost.running.superseded.is_cancelled());
    // What still comes over it changes nothing.
    lost.push(&data(b"zz")).unwrap();
    assert_eq!(incoming.received(&key("a")), 5);
    assert!(lost.finish().is_none());
    assert_eq!(incoming.received(&key("a")), 5);
}

#[test]
fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
    let (dir, incoming) = open(2, 9);
    for client in ["c", "a", "b"] {
        broken(&incoming, client, b"abcd");
    }
    let received = |client| incoming.received(&key(client));
    assert_eq!((received("c"), received("a"), received("b"), files(&dir)), (0, 4, 4, 2));
    broken(&incoming, "d", b"abcdef");
    assert_eq!((received("a"), received("b"), received("d"), files(&dir)), (0, 0, 6, 1));
    broken(&incoming, "e", PAYLOAD);
    assert_eq!((received("e"), received("d")), (0, 6));
}

#[test]
fn the_end_of_the_round_and_a_start_forget_everything() {
    let (dir, incoming) = open(4, 100);
    broken(&incoming, "a", b"abcd");
    let late = incoming.begin("b".parse().unwrap(), &header(0)).unwrap();
    late.push(&data(b"abcd")).unwrap();
    incoming.round_is(None);
    drop(late);
    assert_eq!((incoming.received(&key("a")), files(&dir)), (0, 0));
    incoming.round_is(Some(Round(1)));
    broken(&incoming, "a", b"abcd");
    assert_eq!(files(&dir), 1);
    Incoming::open(dir.path().join("incoming"), Bounds { uploads: 4, bytes: 100 }).unwrap();
    assert_eq!(files(&dir), 0);
}
