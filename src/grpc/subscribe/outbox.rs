//! What waits to be sent, counted by what it takes: a message of the group or an answer may have thousands of entries.

use std::collections::VecDeque;

use tonic::Status;

use super::Outgoing;
use crate::grpc::MAX_PARTITIONS;
use crate::proto::subscribe_response::Response;

/// While more entries wait than this, the client's requests wait too.
const MAX_ANSWERED: usize = 1_000;
/// With more entries than this a stream ends: what its group says cannot wait. Enough for all the partitions that a member
/// can have to come, to go and to come again.
const MAX_ENTRIES: usize = 3 * MAX_PARTITIONS + MAX_ANSWERED;

/// Messages in their order.
#[derive(Default)]
pub struct Outbox {
    messages: VecDeque<Outgoing>,
    /// Of all of them.
    entries: usize,
}

impl Outbox {
    /// Adds a message.
    pub fn push(&mut self, message: Outgoing) {
        self.entries += entries(&message);
        self.messages.push_back(message);
    }

    /// The next message to send.
    pub fn pop(&mut self) -> Option<Outgoing> {
        let message = self.messages.pop_front()?;
        self.entries -= entries(&message);
        Some(message)
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether another request may be answered, however many entries its answer has.
    pub fn takes_answers(&self) -> bool {
        self.entries < MAX_ANSWERED
    }

    /// # Errors
    /// `RESOURCE_EXHAUSTED` when there is more than a client that reads can have left.
    pub fn check(&self) -> Result<(), Status> {
        if self.entries <= MAX_ENTRIES {
            return Ok(());
        }
        Err(Status::resource_exhausted(
            "the client does not read what its group tells it; read all the time, whatever the credit, and subscribe again",
        ))
    }
}

/// What a message counts for: itself and each of its entries. Records are bounded by credit.
fn entries(message: &Outgoing) -> usize {
    let response = message.response.as_ref().ok().and_then(|message| message.response.as_ref());
    1 + match response {
        Some(Response::Assigned(assigned)) => assigned.partitions.len(),
        Some(Response::Revoked(revoked)) => revoked.partitions.len(),
        Some(Response::Acknowledged(answer)) => answer.results.len(),
        Some(Response::Records(_)) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Acknowledged, CommitResult, Revoked, TopicPartition};

    fn answer(entries: usize) -> Outgoing {
        let results = vec![CommitResult::default(); entries];
        Response::Acknowledged(Acknowledged { id: 0, results }).into()
    }

    fn revoked(entries: usize) -> Outgoing {
        let partitions = vec![TopicPartition::default(); entries];
        Response::Revoked(Revoked { partitions, lost: false }).into()
    }

    #[test]
    fn many_small_answers_hold_requests_up_and_so_does_one_large_one() {
        let mut outbox = Outbox::default();
        outbox.push(answer(MAX_PARTITIONS));
        assert!(!outbox.takes_answers());
        outbox.pop();
        assert!(outbox.takes_answers());
        for _ in 0..MAX_ANSWERED {
            outbox.push(answer(0));
        }
        assert!(!outbox.takes_answers());
        outbox.pop();
        assert!(outbox.takes_answers());
    }

    #[test]
    fn all_partitions_may_come_and_go_but_not_for_ever() {
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            outbox.push(revoked(MAX_PARTITIONS));
        }
        outbox.check().unwrap();
        outbox.push(revoked(MAX_PARTITIONS));
        assert_eq!(outbox.check().unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
