//! Writes to one block land in their order, whoever issues them.

use crate::sim::client::Reply;

pub(in crate::sim) fn lands(block: &(u64, u64), reply: &Reply) -> Result<(), String> {
    let (seq, hash) = *block;
    if reply.seq < seq {
        return Err(format!(
            "write {} lands on block {} over the newer {seq}",
            reply.seq, reply.page
        ));
    }
    match reply.seq == seq && reply.hash != hash {
        true => Err(format!(
            "write {seq} lands on block {} from two executions",
            reply.page
        )),
        false => Ok(()),
    }
}
