//! Where reading begins.

use std::collections::HashMap;

use tonic::Status;

use crate::group::subscriber::TopicPartition;
use crate::grpc::{offsets, request};
use crate::log::Offset;
use crate::log::view::{Place, View};
use crate::proto::{self, start::From};

/// Where reading begins in partitions for which the group has committed nothing, and without a group.
#[derive(Debug)]
pub enum Start {
    Committed,
    Earliest {
        /// Also where retention has taken what the group has committed.
        by_name: bool,
    },
    Latest,
    Time(i64),
    Offsets(HashMap<(String, u32), i64>),
}

impl Start {
    /// Checks what the client says.
    pub fn check(asked: Option<proto::Start>) -> Result<Start, Status> {
        Ok(match asked.and_then(|start| start.from) {
            Some(From::Committed(_)) => Start::Committed,
            None => Start::Earliest { by_name: false },
            Some(From::Earliest(_)) => Start::Earliest { by_name: true },
            Some(From::Latest(_)) => Start::Latest,
            Some(From::TimeMs(time)) => Start::Time(time),
            Some(From::Offsets(all)) => {
                request::few(all.offsets.len())?;
                let each = all.offsets.into_iter();
                Start::Offsets(each.map(|at| ((at.topic, at.partition), at.offset)).collect())
            }
        })
    }

    /// The first record to send of a partition, for which the group has `committed`.
    pub async fn find(
        &self,
        view: &View,
        partition: &TopicPartition,
        place: Place,
        committed: Option<i64>,
    ) -> Result<Offset, Status> {
        let (topic, index) = (&partition.topic, partition.partition);
        let range = view.range(place);
        let offset = match (committed, self) {
            (Some(committed), Start::Earliest { by_name: true }) => Offset(committed).max(range.start),
            (Some(committed), _) => Offset(committed),
            (None, Start::Earliest { .. }) => range.start,
            (None, Start::Latest) => range.end,
            (None, Start::Time(time)) => offsets::at_time(view, partition, place, *time).await?.0,
            (None, Start::Committed) => {
                return Err(Status::failed_precondition(format!(
                    "nothing is committed for {topic} [{index}]; start at earliest, latest, an offset or a time, or \
                     commit an offset"
                )));
            }
            (None, Start::Offsets(all)) => {
                let given = all.get(&(topic.to_string(), index as u32));
                Offset(*given.ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "there is no start for {topic} [{index}]; give its offset"
                    ))
                })?)
            }
        };
        if offset < range.start || offset > range.end {
            let whose = if committed.is_some() { "committed " } else { "" };
            return Err(Status::out_of_range(format!(
                "{whose}offset {offset} of {topic} [{index}] is not there: it holds {} to {}; {}",
                range.start,
                range.end,
                match committed {
                    Some(_) if offset < range.start =>
                        "to skip what is gone, subscribe with start earliest given by name; to go on elsewhere, end all \
                         members of the group, commit an offset inside that, and subscribe again",
                    Some(_) =>
                        "end all members of the group, commit an offset inside that, and subscribe again",
                    None => "start inside that",
                }
            )));
        }
        Ok(offset)
    }
}
