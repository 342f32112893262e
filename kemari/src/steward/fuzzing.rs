//! The doors to what a steward reads: see `crate::fuzzing`.

use kemari_vmm::disk::OpenImage;

use super::protocol::{Opening, Orders, Refusal, Request, receive, send};
use super::serve;

/// Takes this as what comes on either socket, with orders that name nothing: so nothing is run or opened.
pub fn take_requests(bytes: &[u8]) {
    let orders = Orders::default();
    let mut rest = bytes;
    while let Ok((_, request)) = receive::<(u64, Request)>(&mut rest) {
        let _ = serve::answer(&orders, request);
    }
    if let Ok((_, opening)) = postcard::from_bytes::<(u64, Opening)>(bytes) {
        let refusal = serve::open(&orders, &opening).expect_err("there is nothing to open");
        assert_eq!(refusal, Refusal::Unknown);
    }
}

/// Requests as a side makes them.
pub fn requests() -> Vec<Vec<u8>> {
    let fence = Request::Fence {
        peer: "b".into(),
        until_ns: 7_000_000_000,
    };
    let mut stream = Vec::new();
    send(&mut stream, &(1_u64, fence)).expect("memory");
    send(&mut stream, &(2_u64, Request::Look)).expect("memory");
    let how = OpenImage {
        write: true,
        direct: true,
        exclusive: true,
    };
    let openings = [Opening::Tap("net0".into()), Opening::disk("blk0".into(), how)];
    let packets = openings.map(|opening| postcard::to_stdvec(&(3_u64, opening)).expect("memory"));
    [vec![stream], packets.to_vec()].concat()
}
