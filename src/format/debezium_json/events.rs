//! Events that are not changes of a table. Heartbeats, begin and end marks have Debezium's form; a watermark and a gap
//! have one of our own, which begins with `type`.

use super::{DebeziumJson, Scratch, json};
use crate::change::{Event, Gap, Heartbeat, SnapshotMark, SnapshotStage, TransactionTotals, Watermark};
use crate::format::digits::Digits;
use crate::format::headers::{EVENT_HEADER, POSITION_HEADER};
use crate::format::{FormatError, Sink};
use crate::log::{Header, Record};

impl DebeziumJson {
    pub(super) fn encode_message(
        &mut self,
        event: &Event<'_>,
        prefix: &str,
        content: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let Scratch { value, key, position, .. } = &mut self.scratch;
        key.extend_from_slice(b"{\"prefix\":");
        json::string(key, prefix.as_bytes());
        key.push(b'}');

        value.extend_from_slice(b"{\"op\":\"m\"");
        self.parts.write_processed_ms(value);
        value.push(b',');
        self.parts.write_source(value, &self.no_names, event.lsn);
        value.extend_from_slice(b",\"transaction\":null,\"message\":{\"prefix\":");
        json::string(value, prefix.as_bytes());
        value.extend_from_slice(b",\"content\":\"");
        json::base64(value, content);
        value.extend_from_slice(b"\"}}");
        send(event, "message", Some(position), Some(key), value, sink)
    }

    pub(super) fn encode_gap(
        &mut self,
        event: &Event<'_>,
        gap: &Gap,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let Scratch { value, position, .. } = &mut self.scratch;
        value.extend_from_slice(b"{\"type\":\"gap\",\"cause\":");
        json::string(value, gap.cause.as_bytes());
        value.extend_from_slice(b",\"table\":");
        match &gap.table {
            Some((schema, table)) => {
                value.extend_from_slice(b"{\"schema\":");
                json::string(value, schema.as_bytes());
                value.extend_from_slice(b",\"table\":");
                json::string(value, table.as_bytes());
                value.push(b'}');
            }
            None => value.extend_from_slice(b"null"),
        }
        value.extend_from_slice(b",\"from\":");
        match gap.from {
            Some(from) => json::string(value, from.to_string().as_bytes()),
            None => value.extend_from_slice(b"null"),
        }
        value.extend_from_slice(b",\"to\":");
        json::string(value, gap.to.to_string().as_bytes());
        value.extend_from_slice(b",\"detail\":");
        json::string(value, gap.detail.as_bytes());
        value.extend_from_slice(b",\"position\":");
        json::string(value, position);
        self.parts.write_processed_ms(value);
        value.push(b'}');
        send(event, "gap", Some(position), None, value, sink)
    }

    pub(super) fn encode_snapshot(
        &mut self,
        event: &Event<'_>,
        mark: &SnapshotMark,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let Scratch { value, .. } = &mut self.scratch;
        let (stage, rows) = match mark.stage {
            SnapshotStage::Begin => ("begin", None),
            SnapshotStage::End { rows } => ("end", Some(rows)),
        };
        value.extend_from_slice(b"{\"type\":\"snapshot\",\"stage\":");
        json::string(value, stage.as_bytes());
        value.extend_from_slice(b",\"schema\":");
        json::string(value, mark.schema.as_bytes());
        value.extend_from_slice(b",\"table\":");
        json::string(value, mark.table.as_bytes());
        value.extend_from_slice(b",\"epoch\":");
        value.extend_from_slice(Digits::new(mark.epoch.into()).as_bytes());
        if let Some(rows) = rows {
            value.extend_from_slice(b",\"rows\":");
            value.extend_from_slice(Digits::new(rows).as_bytes());
        }
        self.parts.write_processed_ms(value);
        value.push(b'}');
        send(event, "snapshot", None, None, value, sink)
    }

    pub(super) fn encode_heartbeat(
        &mut self,
        event: &Event<'_>,
        heartbeat: Heartbeat,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let Scratch { value, key, .. } = &mut self.scratch;
        key.extend_from_slice(b"{\"serverName\":");
        json::string(key, self.topic_prefix.as_bytes());
        key.push(b'}');
        value.extend_from_slice(b"{\"ts_ms\":");
        json::integer(value, heartbeat.time.millis());
        value.push(b'}');
        send(event, "heartbeat", None, Some(key), value, sink)
    }

    pub(super) fn encode_watermark(
        &mut self,
        event: &Event<'_>,
        watermark: Watermark,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let Scratch { value, .. } = &mut self.scratch;
        value.extend_from_slice(b"{\"type\":\"watermark\",\"commit_lsn\":");
        json::string(value, watermark.commit_lsn.to_string().as_bytes());
        value.extend_from_slice(b",\"commit_ts_ms\":");
        json::integer(value, watermark.commit_time.millis());
        self.parts.write_processed_ms(value);
        value.push(b'}');
        send(event, "watermark", None, None, value, sink)
    }

    pub(super) fn encode_begin(&mut self, event: &Event<'_>, sink: &mut dyn Sink) -> Result<(), FormatError> {
        self.begin_mark(event, "BEGIN");
        self.scratch.value.extend_from_slice(b",\"event_count\":null,\"data_collections\":null");
        self.end_mark(event, "begin", sink)
    }

    pub(super) fn encode_end(
        &mut self,
        event: &Event<'_>,
        totals: &TransactionTotals,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        self.begin_mark(event, "END");
        let value = &mut self.scratch.value;
        value.extend_from_slice(b",\"event_count\":");
        value.extend_from_slice(Digits::new(totals.changes).as_bytes());
        value.extend_from_slice(b",\"data_collections\":[");
        for (place, (schema, table, changes)) in totals.tables.iter().enumerate() {
            value.extend_from_slice(if place == 0 { b"{" } else { b",{" });
            value.extend_from_slice(b"\"data_collection\":");
            json::string(value, format!("{schema}.{table}").as_bytes());
            value.extend_from_slice(b",\"event_count\":");
            value.extend_from_slice(Digits::new(*changes).as_bytes());
            value.push(b'}');
        }
        value.push(b']');
        self.end_mark(event, "end", sink)
    }

    /// Writes a mark's key, and its value up to the id: of transaction id and commit LSN, so that the two marks of a
    /// transaction have the same.
    fn begin_mark(&mut self, event: &Event<'_>, status: &str) {
        let Scratch { value, key, .. } = &mut self.scratch;
        let id = format!("{}:{}", event.transaction.xid, event.transaction.commit_lsn.0);
        key.extend_from_slice(format!("{{\"id\":\"{id}\"}}").as_bytes());
        value.extend_from_slice(format!("{{\"status\":\"{status}\",\"id\":\"{id}\"").as_bytes());
    }

    fn end_mark(&mut self, event: &Event<'_>, kind: &str, sink: &mut dyn Sink) -> Result<(), FormatError> {
        let Scratch { value, key, position, .. } = &mut self.scratch;
        value.extend_from_slice(b",\"ts_ms\":");
        json::integer(value, event.transaction.commit_time.millis());
        value.push(b'}');
        send(event, kind, Some(position), Some(key), value, sink)
    }
}

/// Hands over a record; what has no place in the source has no position.
fn send(
    event: &Event<'_>,
    kind: &str,
    position: Option<&Vec<u8>>,
    key: Option<&Vec<u8>>,
    value: &[u8],
    sink: &mut dyn Sink,
) -> Result<(), FormatError> {
    let kind = Header { name: EVENT_HEADER, value: Some(kind.as_bytes()) };
    let placed = position.map(|position| [Header { name: POSITION_HEADER, value: Some(position) }, kind]);
    let headers = placed.as_ref().map_or(std::slice::from_ref(&kind), |headers| headers);
    let timestamp = event.transaction.commit_time.millis();
    sink.record(&Record { timestamp, key: key.map(Vec::as_slice), value: Some(value), headers })?;
    Ok(())
}
