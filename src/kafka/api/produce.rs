//! Produce, key 0, versions 3–13: records to write. Refused without `kafka.unsafe_produce`, as topics are written by their
//! task alone.
//!
//! * 5 adds the log's start to the answer, 7 zstd, 8 what is wrong with which record, 10 the current leader; 9 is flexible,
//!   13 names topics by id.
//!
//! Topics belong to tasks and are written by them alone, so unlike in Apache Kafka every partition of theirs is answered
//! with TOPIC_AUTHORIZATION_FAILED, which clients do not retry, and from version 8 on with a message. The API is
//! advertised all the same because librdkafka derives its Fetch version from it and reads nothing from a broker without
//! it. Only with `kafka.unsafe_produce`, for tests, are there [topics that clients write](crate::produce).
//!
//! For those it is as in Apache Kafka, but for these: an answer always waits for the disk, whatever `acks` says; there are
//! no transactions; a topic has Kafka's defaults (batches of 1 MiB, the time of the producer, at most an hour ahead); a
//! batch that is sent again is answered with no time, not with its own; an error comes without the log's start. Refused
//! are what Kafka fails at with no error of its own (an unknown codec, records that cannot be decompressed), offsets in a
//! batch that do not count from 0 however it is compressed, and bytes behind it. With `acks=0` nothing is answered, and an
//! error closes the connection.

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::TopicProduceData;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ApiKey, ProduceRequest, ProduceResponse};

use super::{from_uuid, text};
use crate::kafka::shape::{BYTES, Field, I16, I32, Kind, STRING, UUID};
use crate::kafka::{Api, Reply, Request, RequestError};
use crate::log::record_batch::{ProducedBatch, ProducedError};
use crate::log::{LogError, PartitionId};
use crate::produce::sequences::SequenceError;
use crate::produce::{Append, AppendError, Appended, ClientTopics};

/// Produce.
pub static API: Api = Api { key: ApiKey::Produce, versions: (3, 13), flexible_from: 9, shape: SHAPE, handle };

const PARTITION: &[Field] = &[Field::new(I32, 3), Field::new(BYTES, 3)];
const TOPIC: &[Field] =
    &[Field::new(STRING, 3).until(12), Field::new(UUID, 13), Field::new(Kind::Structs(PARTITION), 3)];
const SHAPE: &[Field] =
    &[Field::new(STRING, 3), Field::new(I16, 3), Field::new(I32, 3), Field::new(Kind::Structs(TOPIC), 3)];

const READ_ONLY: &str =
    "topics are read-only here: Millrace writes them from the changes of their source database";
const NO_TRANSACTIONS: &str = "there are no transactions here; leave transactional.id away";
/// First version that knows zstd.
const ZSTD_FROM: i16 = 7;

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

/// Why nothing has been written to a partition.
struct Refused {
    error: ResponseError,
    message: String,
    /// Numbers of records in the batch, each with what is wrong with it.
    records: Vec<(i32, String)>,
}

impl Refused {
    fn new(error: ResponseError, message: impl Into<String>) -> Refused {
        Refused { error, message: message.into(), records: Vec::new() }
    }
}

/// What became of each partition asked for, in order.
type Answers = Vec<Result<Appended, Refused>>;

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let mut asked: ProduceRequest = request.decode()?;
    let answers = write(&mut asked, request).await?;
    if asked.acks == 0 {
        return match answers.iter().all(Result::is_ok) {
            true => Ok(Reply::none()),
            false => Err(RequestError::Refused("a write with acks=0 that failed")),
        };
    }
    let mut answers = answers.into_iter();
    let topics = asked.topic_data.into_iter().map(|topic| {
        let indexes = topic.partition_data.iter().map(|partition| partition.index);
        let partitions =
            indexes.zip(answers.by_ref()).map(|(index, answer)| response(index, answer, request.version));
        TopicProduceResponse::default()
            .with_partition_responses(partitions.collect())
            .with_name(topic.name)
            .with_topic_id(topic.topic_id)
    });
    Reply::encode(&ProduceResponse::default().with_responses(topics.collect()), request.version)
}

/// Writes what may be written; takes the batches out of the request.
async fn write(asked: &mut ProduceRequest, request: &Request) -> Result<Answers, RequestError> {
    let wrong_for_all = match (asked.acks, &asked.transactional_id) {
        (i16::MIN..=-2 | 2.., _) => Some((
            ResponseError::InvalidRequiredAcks,
            format!("acks={} is none of 0, 1 and -1 (all)", asked.acks),
        )),
        (_, Some(_)) => Some((ResponseError::TransactionalIdAuthorizationFailed, NO_TRANSACTIONS.to_owned())),
        _ => None,
    };
    let mut appends = Vec::new();
    let mut answers: Vec<Result<(), Refused>> = Vec::new();
    for topic in &mut asked.topic_data {
        let partitions = match (&wrong_for_all, &request.broker.client_topics) {
            (_, None) => Err((ResponseError::TopicAuthorizationFailed, READ_ONLY.to_owned())),
            (Some(wrong), Some(_)) => Err(wrong.clone()),
            (None, Some(ours)) => writable(topic, request, ours),
        };
        for asked in &mut topic.partition_data {
            let prepared = match &partitions {
                Ok(partitions) => {
                    let found = usize::try_from(asked.index).ok().and_then(|index| partitions.get(index));
                    prepare(found, asked.records.take(), request.version)
                }
                Err((error, message)) => Err(Refused::new(*error, message.as_str())),
            };
            answers.push(prepared.map(|append| appends.push(append)));
        }
    }
    let written = match &request.broker.client_topics {
        Some(ours) if !appends.is_empty() => {
            let stopped = |_| RequestError::Refused("a write while the broker is being stopped");
            ours.append(appends).await.map_err(stopped)?
        }
        _ => Vec::new(),
    };
    let mut written = written.into_iter();
    let stopped = || Err(AppendError::Log(LogError::Stopped));
    let merged = answers.into_iter().map(|answer| match answer {
        Ok(()) => written.next().unwrap_or_else(stopped).map_err(|error| refused(&error)),
        Err(refused) => Err(refused),
    });
    Ok(merged.collect())
}

/// The partitions of a topic, if clients may write it.
fn writable(
    topic: &TopicProduceData,
    request: &Request,
    ours: &ClientTopics,
) -> Result<Vec<PartitionId>, (ResponseError, String)> {
    let topics = &request.broker.topics;
    let (found, error) = match request.version {
        13.. => (topics.by_id(from_uuid(topic.topic_id)), ResponseError::UnknownTopicId),
        _ => (topics.by_name(&topic.name), ResponseError::UnknownTopicOrPartition),
    };
    match found {
        Some(found) if ours.has(&found) => Ok(found.partitions.clone()),
        Some(_) => Err((ResponseError::TopicAuthorizationFailed, READ_ONLY.to_owned())),
        None => Err((error, "there is no such topic".to_owned())),
    }
}

fn prepare(
    partition: Option<&PartitionId>,
    records: Option<bytes::Bytes>,
    version: i16,
) -> Result<Append, Refused> {
    let Some(partition) = partition else {
        return Err(Refused::new(ResponseError::UnknownTopicOrPartition, "the topic has no such partition"));
    };
    let batch = records.unwrap_or_default();
    if version < ZSTD_FROM && ProducedBatch::is_zstd(&batch) {
        let message = format!("version {version} of Produce knows no zstd");
        return Err(Refused::new(ResponseError::UnsupportedCompressionType, message));
    }
    Ok(Append { partition: *partition, batch })
}

/// What a producer is told of an error.
fn refused(error: &AppendError) -> Refused {
    let (code, records) = match error {
        AppendError::Batch(ProducedError::Corrupt(_)) => (ResponseError::CorruptMessage, &[][..]),
        AppendError::Batch(ProducedError::Invalid(_)) => (ResponseError::InvalidRecord, &[][..]),
        AppendError::Batch(ProducedError::UnknownCodec(_)) => {
            (ResponseError::UnsupportedCompressionType, &[][..])
        }
        AppendError::Batch(ProducedError::TooLarge { .. })
        | AppendError::Log(LogError::RecordTooLarge { .. }) => (ResponseError::MessageTooLarge, &[][..]),
        AppendError::Batch(ProducedError::Transactional) => {
            (ResponseError::TransactionalIdAuthorizationFailed, &[][..])
        }
        AppendError::Batch(ProducedError::Records(records)) => (ResponseError::InvalidRecord, &records[..]),
        AppendError::Batch(ProducedError::Timestamps(records)) => {
            (ResponseError::InvalidTimestamp, &records[..])
        }
        AppendError::Sequence(SequenceError::OutOfOrder { .. }) => {
            (ResponseError::OutOfOrderSequenceNumber, &[][..])
        }
        AppendError::Sequence(SequenceError::OldEpoch { .. }) => {
            (ResponseError::InvalidProducerEpoch, &[][..])
        }
        AppendError::Log(LogError::UnknownPartition(_)) => (ResponseError::UnknownTopicOrPartition, &[][..]),
        AppendError::Log(_) => (ResponseError::KafkaStorageError, &[][..]),
    };
    Refused { error: code, message: error.to_string(), records: records.to_vec() }
}

fn response(index: i32, answer: Result<Appended, Refused>, version: i16) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(index);
    match answer {
        Ok(appended) => response.with_base_offset(appended.offset).with_log_start_offset(appended.log_start),
        Err(refused) => {
            let response = response.with_error_code(refused.error.code()).with_base_offset(-1);
            if version < 8 {
                return response;
            }
            let records = refused.records.iter().map(|(index, message)| {
                BatchIndexAndErrorMessage::default()
                    .with_batch_index(*index)
                    .with_batch_index_error_message(Some(text(message)))
            });
            response.with_record_errors(records.collect()).with_error_message(Some(text(&refused.message)))
        }
    }
}
