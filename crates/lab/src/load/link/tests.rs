use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;

/// A link of this rate over a pipe, and the pipe's other end.
fn pipe(rate: Option<u32>) -> (Link, LinkStream<DuplexStream>, DuplexStream) {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let link = Link::new(address, rate, Arc::default());
    let (near, far) = duplex(1 << 20);
    let stream = link.over(near);
    (link, stream, far)
}

async fn received(mut far: DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_keeps_its_rate_both_ways() {
    let (_, mut stream, mut far) = pipe(Some(10_000));
    let begun = Instant::now();
    stream.write_all(&[7; 25_000]).await.unwrap();
    // The last piece of 1000 bytes has gone, and its pause is still to come.
    let took = begun.elapsed().as_millis();
    assert!((2400..=2450).contains(&took), "{took}");

    far.write_all(&[8; 25_000]).await.unwrap();
    let begun = Instant::now();
    let mut bytes = vec![0; 25_000];
    stream.read_exact(&mut bytes).await.unwrap();
    let took = begun.elapsed().as_millis();
    assert!((2400..=2450).contains(&took), "{took}");
    assert!(bytes.iter().all(|byte| *byte == 8));
}

#[tokio::test(start_paused = true)]
async fn an_idle_slow_link_saves_nothing_up() {
    let (_, mut stream, _far) = pipe(Some(10_000));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let begun = Instant::now();
    stream.write_all(&[7; 5_000]).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_cut_link_ends_at_the_byte() {
    let (link, mut stream, far) = pipe(None);
    stream.write_all(b"before").await.unwrap();
    link.arm(Damage::Cut(5));
    assert!(link.is_armed());
    let error = stream.write_all(b"0123456789").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(stream.read_u8().await.is_err() && !link.is_armed());
    drop(stream);
    assert_eq!(received(far).await, b"before01234");

    // The next connection of the same link is whole.
    let (near, far) = duplex(100);
    let mut stream = link.over(near);
    stream.write_all(b"0123456789").await.unwrap();
    drop(stream);
    assert_eq!(received(far).await, b"0123456789");
    assert_eq!(link.opened(), 2);
}

#[tokio::test]
async fn a_flip_changes_the_last_byte_of_one_record() {
    let (link, mut stream, far) = pipe(None);
    link.arm(Damage::Flip(6));
    for record in [b"abcd", b"efgh", b"ijkl"] {
        stream.write_all(record).await.unwrap();
    }
    drop(stream);
    assert_eq!(received(far).await, b"abcdefgiijkl");
}

#[tokio::test]
async fn a_link_that_hangs_up_wakes_its_reader() {
    let (link, mut stream, _far) = pipe(None);
    assert_eq!((link.meter.peak(), link.meter.open.load(Ordering::Relaxed)), (1, 1));
    let reader = tokio::spawn(async move { stream.read_u8().await.map_err(|e| e.kind()) });
    tokio::task::yield_now().await;
    link.hang_up();
    assert_eq!(reader.await.unwrap(), Err(io::ErrorKind::ConnectionReset));
    assert_eq!(link.meter.open.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn bytes_are_counted_both_ways() {
    let (link, mut stream, mut far) = pipe(None);
    stream.write_all(&[1; 300]).await.unwrap();
    far.write_all(&[2; 70]).await.unwrap();
    stream.read_exact(&mut [0; 70]).await.unwrap();
    assert_eq!(link.meter.bytes(), (300, 70));
}
