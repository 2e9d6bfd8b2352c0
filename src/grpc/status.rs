//! What clients are told when something does not work: gRPC's codes, with what to do about it.

use kafka_protocol::ResponseError;
use tonic::{Code, Status};

use crate::group::subscriber::GroupError;
use crate::log::LogError;
use crate::proto::Error;

/// The broker stops.
pub fn stopping() -> Status {
    Status::unavailable("the broker is stopping: call again when it is back")
}

/// A partition cannot be read.
pub fn unreadable(topic: &str, partition: u32, error: &LogError) -> Status {
    match error {
        LogError::OutOfRange { offset, start, end } => Status::out_of_range(format!(
            "offset {offset} of {topic} [{partition}] is not there: it holds {start} to {end}; begin inside that, or \
             end all members of the group and commit an offset inside it"
        )),
        LogError::UnknownPartition(_) => {
            Status::not_found(format!("{topic} has been deleted; ListTopics has those that there are"))
        }
        LogError::Stopped => stopping(),
        error => {
            tracing::error!(topic, partition, %error, "cannot read for a grpc client");
            Status::data_loss(format!("{topic} [{partition}] cannot be read; the broker's log says why"))
        }
    }
}

/// A request for a group is refused as a whole.
pub fn refused(group: &str, error: ResponseError) -> Status {
    match error {
        ResponseError::InvalidGroupId => {
            Status::invalid_argument("a group's name has 1 to 255 bytes; name the group")
        }
        ResponseError::CoordinatorNotAvailable => stopping(),
        ResponseError::UnknownMemberId | ResponseError::IllegalGeneration => {
            Status::failed_precondition(format!(
                "group {group} has members, and only they commit; end them, or acknowledge as one of them in Subscribe"
            ))
        }
        error => Status::failed_precondition(format!("group {group} refuses: {error}")),
    }
}

/// A commit for one partition is refused.
pub fn commit_error(error: ResponseError) -> Error {
    let (code, message) = match error {
        ResponseError::UnknownTopicOrPartition => {
            (Code::NotFound, "there is no such topic or partition; ListTopics has them")
        }
        ResponseError::OffsetMetadataTooLarge => {
            (Code::InvalidArgument, "the metadata is too large; at most 4,096 bytes are kept")
        }
        ResponseError::InvalidRequest => (Code::InvalidArgument, "an offset cannot be negative"),
        ResponseError::PolicyViolation => (
            Code::ResourceExhausted,
            "there are as many committed offsets as there may be; delete old groups",
        ),
        ResponseError::CoordinatorNotAvailable => (Code::Unavailable, "not written; try again"),
        _ => (Code::FailedPrecondition, "the partition is not this member's (any more)"),
    };
    self::error(code, message)
}

/// An error inside an answer.
pub fn error(code: Code, message: impl Into<String>) -> Error {
    Error { code: code.into(), message: message.into() }
}

impl From<GroupError> for Status {
    fn from(error: GroupError) -> Status {
        let code = match &error {
            GroupError::Rebalancing { .. } => Code::Aborted,
            GroupError::Incompatible { .. } => Code::FailedPrecondition,
            GroupError::Full { .. } => Code::ResourceExhausted,
            GroupError::Invalid { .. } => Code::InvalidArgument,
            GroupError::Stopping => return stopping(),
        };
        Status::new(code, error.to_string())
    }
}
