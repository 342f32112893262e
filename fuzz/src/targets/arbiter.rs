//! What a member of etcd, or something else at its address, answers over HTTP.

use std::sync::OnceLock;

use kemari::fuzzing::Members;

pub(crate) fn run(bytes: &[u8]) {
    static MEMBERS: OnceLock<Members> = OnceLock::new();
    MEMBERS.get_or_init(|| Members::new("vm")).answer(bytes);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let header =
        r#""header":{"cluster_id":"14841639068965178418","member_id":"1","revision":"7","raft_term":"2"}"#;
    let kvs = concat!(
        r#"[{"key":"L2tlbWFyaS92bQ==","create_revision":"2","mod_revision":"7","#,
        r#""version":"5","value":"e30K"}]"#
    );
    let range = format!(r#"{{{header},"kvs":{kvs},"count":"1"}}"#);
    let swapped = format!(r#"{{{header},"succeeded":true,"responses":[{{"response_put":{{}}}}]}}"#);
    let conflict = format!(r#"{{{header},"responses":[{{"response_range":{{"kvs":{kvs}}}}}]}}"#);
    let refused = r#"{"error":"etcdserver: invalid auth token","code":16,"message":"etcdserver: no leader"}"#;
    let token = format!(r#"{{{header},"token":"abc.7"}}"#);
    let answer = |status: u16, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};x=y\r\n{range}\r\n0\r\n\r\n",
        range.len()
    );
    [
        answer(200, &range),
        answer(200, &swapped),
        answer(200, &conflict),
        answer(401, refused),
        answer(502, "<html>no</html>"),
        answer(200, &token),
        chunked,
        "HTTP/1.0 200 OK\r\n\r\n{}".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}
