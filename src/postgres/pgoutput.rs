//! The messages of PostgreSQL's `pgoutput` plugin, protocol versions 1 to 4, as borrowed views of the bytes received.
//!
//! Pure: bytes in, message out, nothing kept. Inside a streamed block (between Stream Start and Stream Stop) every
//! message carries a transaction id that it does not carry elsewhere; the bytes do not tell, so the caller says where
//! it is (`in_stream`). Row values stay where they are: [`Cells`] is scratch that remembers their places, and is reused
//! from message to message. Every length is checked; no input makes this panic.

use crate::change::{Before, Cell, CellKind, Lsn, Operation, ReplicaIdentity, Row, Timestamp, Value};

/// The newest protocol version that a server of this `server_version_num` speaks.
pub fn protocol_for(server_version_num: u32) -> u32 {
    match server_version_num {
        160_000.. => 4,
        150_000.. => 3,
        140_000.. => 2,
        _ => 1,
    }
}

/// Scratch for the places of a message's row values.
#[derive(Debug, Default)]
pub struct Cells {
    /// Of the old row.
    pub old: Vec<Cell>,
    /// Of the new row.
    pub new: Vec<Cell>,
}

/// Bytes that are not what the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes.
    #[error("an empty message")]
    Empty,
    /// A message type that we do not know.
    #[error("unknown message type {0:#04x}; is the server newer than this Millrace?")]
    UnknownType(u8),
    /// Two-phase messages, which we never ask for.
    #[error(
        "message type '{0}' of two-phase commit, which was not asked for; drop the slot and create it without two_phase"
    )]
    Unsupported(char),
    /// The message ends early.
    #[error("message '{message}' ends before its {field}")]
    Truncated {
        /// Its type.
        message: char,
        /// What is missing.
        field: &'static str,
    },
    /// More bytes than the message has fields.
    #[error("message '{message}' has {extra} bytes too many")]
    Trailing {
        /// Its type.
        message: char,
        /// How many.
        extra: usize,
    },
    /// A value that its field cannot have.
    #[error("message '{message}' has an impossible {field}: {value}")]
    Invalid {
        /// Its type.
        message: char,
        /// The field.
        field: &'static str,
        /// What stands there.
        value: i64,
    },
    /// A name that is not UTF-8.
    #[error(
        "message '{message}' has a {field} that is not UTF-8, in a database whose encoding is SQL_ASCII; rename it"
    )]
    NotUtf8 {
        /// Its type.
        message: char,
        /// The field.
        field: &'static str,
    },
}

/// A column of a [`Message::Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Its name.
    pub name: &'a str,
    /// OID of its declared type.
    pub type_oid: u32,
    /// `atttypmod`.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity.
    pub identity: bool,
}

/// One message. `xid` is the (sub)transaction's id inside a streamed block, `None` elsewhere.
#[derive(Debug, Clone)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// LSN of its commit record.
        final_lsn: Lsn,
        /// When it committed.
        commit_time: Timestamp,
        /// Its id.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// LSN of the commit record.
        commit_lsn: Lsn,
        /// LSN just past it.
        end_lsn: Lsn,
        /// When it committed.
        commit_time: Timestamp,
    },
    /// The transaction came from elsewhere.
    Origin {
        /// Its commit LSN there.
        lsn: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// The shape of a table, before its first row and after a change.
    Relation {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// `pg_class.oid`.
        oid: u32,
        /// Schema.
        schema: &'a str,
        /// Name.
        name: &'a str,
        /// What is sent of old rows.
        identity: ReplicaIdentity,
        /// Columns, in the order of row values.
        columns: Vec<RelationColumn<'a>>,
    },
    /// The name of a type that a following relation uses.
    Type {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// `pg_type.oid`.
        oid: u32,
        /// Schema.
        schema: &'a str,
        /// Name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// OID of the table.
        relation: u32,
        /// The row.
        new: Row<'a>,
    },
    /// A row was updated.
    Update {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// OID of the table.
        relation: u32,
        /// The old row, if sent.
        old: Option<Before<'a>>,
        /// The new row.
        new: Row<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// OID of the table.
        relation: u32,
        /// The old row.
        old: Before<'a>,
    },
    /// Tables were truncated, by one statement.
    Truncate {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// `TRUNCATE … CASCADE`.
        cascade: bool,
        /// `TRUNCATE … RESTART IDENTITY`.
        restart_identity: bool,
        /// OIDs of the tables.
        relations: Vec<u32>,
    },
    /// `pg_logical_emit_message`.
    LogicalMessage {
        /// Transaction id in a streamed block.
        xid: Option<u32>,
        /// Whether it belongs to a transaction.
        transactional: bool,
        /// Its place in the WAL.
        lsn: Lsn,
        /// Its prefix.
        prefix: &'a str,
        /// Its content, any bytes.
        content: &'a [u8],
    },
    /// A block of a transaction in progress begins.
    StreamStart {
        /// The top transaction's id.
        xid: u32,
        /// Whether it is the transaction's first block.
        first_segment: bool,
    },
    /// The block ends.
    StreamStop,
    /// A streamed transaction committed.
    StreamCommit {
        /// The top transaction's id.
        xid: u32,
        /// LSN of the commit record.
        commit_lsn: Lsn,
        /// LSN just past it.
        end_lsn: Lsn,
        /// When it committed.
        commit_time: Timestamp,
    },
    /// A streamed transaction, or a subtransaction of it, aborted.
    StreamAbort {
        /// The top transaction's id.
        xid: u32,
        /// Whose changes are void; equal to `xid` when all are.
        sub_xid: u32,
        /// LSN and time of the abort, sent with `streaming 'parallel'` only.
        abort: Option<(Lsn, Timestamp)>,
    },
}

impl Message<'_> {
    /// The (sub)transaction of a change inside a streamed block.
    pub fn xid(&self) -> Option<u32> {
        match self {
            Message::Relation { xid, .. }
            | Message::Type { xid, .. }
            | Message::Insert { xid, .. }
            | Message::Update { xid, .. }
            | Message::Delete { xid, .. }
            | Message::Truncate { xid, .. }
            | Message::LogicalMessage { xid, .. } => *xid,
            _ => None,
        }
    }
}

/// Reads one message.
pub fn parse<'a>(body: &'a [u8], in_stream: bool, cells: &'a mut Cells) -> Result<Message<'a>, DecodeError> {
    let Some(&kind) = body.first() else { return Err(DecodeError::Empty) };
    let mut r = Reader { body, at: 1, message: char::from(kind) };
    let message = match kind {
        b'I' => {
            let (xid, relation) = (r.xid(in_stream)?, r.u32("relation")?);
            r.expect(b'N')?;
            r.row(&mut cells.new)?;
            Message::Insert { xid, relation, new: Row::new(body, &cells.new) }
        }
        b'U' => {
            let (xid, relation) = (r.xid(in_stream)?, r.u32("relation")?);
            let old = match r.u8("tuple kind")? {
                b'N' => None,
                kind => {
                    let old = r.before(kind, &mut cells.old)?;
                    r.expect(b'N')?;
                    Some(old)
                }
            };
            r.row(&mut cells.new)?;
            Message::Update { xid, relation, old, new: Row::new(body, &cells.new) }
        }
        b'D' => {
            let (xid, relation) = (r.xid(in_stream)?, r.u32("relation")?);
            let kind = r.u8("tuple kind")?;
            Message::Delete { xid, relation, old: r.before(kind, &mut cells.old)? }
        }
        b'B' => Message::Begin { final_lsn: r.lsn()?, commit_time: r.time()?, xid: r.u32("transaction id")? },
        b'C' => {
            r.no_flags()?;
            Message::Commit { commit_lsn: r.lsn()?, end_lsn: r.lsn()?, commit_time: r.time()? }
        }
        b'O' => Message::Origin { lsn: r.lsn()?, name: r.text("origin name")? },
        b'R' => r.relation(in_stream)?,
        b'Y' => Message::Type {
            xid: r.xid(in_stream)?,
            oid: r.u32("type")?,
            schema: r.schema()?,
            name: r.text("type name")?,
        },
        b'T' => r.truncate(in_stream)?,
        b'M' => r.logical_message(in_stream)?,
        b'S' => {
            Message::StreamStart { xid: r.u32("transaction id")?, first_segment: r.flag("segment flag")? }
        }
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = r.u32("transaction id")?;
            r.no_flags()?;
            Message::StreamCommit { xid, commit_lsn: r.lsn()?, end_lsn: r.lsn()?, commit_time: r.time()? }
        }
        b'A' => {
            let (xid, sub_xid) = (r.u32("transaction id")?, r.u32("subtransaction id")?);
            let abort = if r.rest().is_empty() { None } else { Some((r.lsn()?, r.time()?)) };
            Message::StreamAbort { xid, sub_xid, abort }
        }
        b'b' | b'P' | b'K' | b'r' | b'p' => return Err(DecodeError::Unsupported(r.message)),
        other => return Err(DecodeError::UnknownType(other)),
    };
    match r.rest().len() {
        0 => Ok(message),
        extra => Err(DecodeError::Trailing { message: r.message, extra }),
    }
}

/// Writes a row's message, as [`parse`] reads it outside of a streamed block.
pub fn write_row(
    out: &mut Vec<u8>,
    operation: Operation,
    relation: u32,
    before: Option<Before<'_>>,
    after: Option<Row<'_>>,
) {
    out.push(match operation {
        Operation::Insert | Operation::Read => b'I',
        Operation::Update => b'U',
        Operation::Delete => b'D',
    });
    out.extend_from_slice(&relation.to_be_bytes());
    let before = before.map(|before| match before {
        Before::Key(row) => (b'K', row),
        Before::Full(row) => (b'O', row),
    });
    for (kind, row) in before.into_iter().chain(after.map(|row| (b'N', row))) {
        out.push(kind);
        out.extend_from_slice(&(row.len() as u16).to_be_bytes());
        for value in row.values() {
            let (kind, bytes) = match value {
                Value::Null => (b'n', None),
                Value::Unsent => (b'u', None),
                Value::Text(text) => (b't', Some(text)),
                Value::Binary(bytes) => (b'b', Some(bytes)),
            };
            out.push(kind);
            if let Some(bytes) = bytes {
                out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
    message: char,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    fn bytes(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.rest().get(..length) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(DecodeError::Truncated { message: self.message, field }),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.rest().first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(DecodeError::Truncated { message: self.message, field }),
        }
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array("LSN").map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn time(&mut self) -> Result<Timestamp, DecodeError> {
        self.array("time").map(|bytes| Timestamp::from_postgres(i64::from_be_bytes(bytes)))
    }

    fn xid(&mut self, in_stream: bool) -> Result<Option<u32>, DecodeError> {
        if in_stream { self.u32("transaction id").map(Some) } else { Ok(None) }
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(field, other.into())),
        }
    }

    /// Flags of Commit and Stream Commit: none is defined, and one that is set would mean something unknown.
    fn no_flags(&mut self) -> Result<(), DecodeError> {
        match self.u8("flags")? {
            0 => Ok(()),
            other => Err(self.invalid("flags", other.into())),
        }
    }

    fn expect(&mut self, tuple: u8) -> Result<(), DecodeError> {
        match self.u8("tuple kind")? {
            found if found == tuple => Ok(()),
            other => Err(self.invalid("tuple kind", other.into())),
        }
    }

    fn invalid(&self, field: &'static str, value: i64) -> DecodeError {
        DecodeError::Invalid { message: self.message, field, value }
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let rest = self.rest();
        let Some(length) = rest.iter().position(|byte| *byte == 0) else {
            return Err(DecodeError::Truncated { message: self.message, field });
        };
        self.at += length + 1;
        std::str::from_utf8(&rest[..length])
            .map_err(|_| DecodeError::NotUtf8 { message: self.message, field })
    }

    /// A schema name; the wire writes `pg_catalog` as nothing.
    fn schema(&mut self) -> Result<&'a str, DecodeError> {
        self.text("schema name").map(|name| if name.is_empty() { "pg_catalog" } else { name })
    }

    fn before(&mut self, kind: u8, cells: &'a mut Vec<Cell>) -> Result<Before<'a>, DecodeError> {
        if kind != b'K' && kind != b'O' {
            return Err(self.invalid("tuple kind", kind.into()));
        }
        self.row(cells)?;
        let row = Row::new(self.body, cells);
        Ok(if kind == b'K' { Before::Key(row) } else { Before::Full(row) })
    }

    /// Notes the places of a row's values.
    fn row(&mut self, cells: &mut Vec<Cell>) -> Result<(), DecodeError> {
        cells.clear();
        let columns = usize::from(u16::from_be_bytes(self.array("number of columns")?));
        // A value takes a byte at least, so a count beyond what is left is a lie and reserves nothing.
        if columns > self.rest().len() {
            return Err(DecodeError::Truncated { message: self.message, field: "values" });
        }
        cells.reserve(columns);
        for _ in 0..columns {
            let (kind, len) = match self.u8("value kind")? {
                b't' => (CellKind::Text, self.u32("length of a value")?),
                b'n' => (CellKind::Null, 0),
                b'u' => (CellKind::Unsent, 0),
                b'b' => (CellKind::Binary, self.u32("length of a value")?),
                other => return Err(self.invalid("value kind", other.into())),
            };
            let start = self.at as u32;
            self.bytes(len as usize, "value")?;
            cells.push(Cell { kind, start, len });
        }
        Ok(())
    }

    fn relation(&mut self, in_stream: bool) -> Result<Message<'a>, DecodeError> {
        let (xid, oid) = (self.xid(in_stream)?, self.u32("relation")?);
        let (schema, name) = (self.schema()?, self.text("table name")?);
        let identity = match self.u8("replica identity")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            other => return Err(self.invalid("replica identity", other.into())),
        };
        let count = usize::from(u16::from_be_bytes(self.array("number of columns")?));
        let mut columns = Vec::with_capacity(count.min(self.rest().len()));
        for _ in 0..count {
            let flags = self.u8("column flags")?;
            columns.push(RelationColumn {
                name: self.text("column name")?,
                type_oid: self.u32("column type")?,
                type_modifier: self.array("type modifier").map(i32::from_be_bytes)?,
                identity: flags & 1 != 0,
            });
        }
        Ok(Message::Relation { xid, oid, schema, name, identity, columns })
    }

    fn truncate(&mut self, in_stream: bool) -> Result<Message<'a>, DecodeError> {
        let (xid, count, options) =
            (self.xid(in_stream)?, self.u32("number of relations")?, self.u8("options")?);
        let length = (count as usize).saturating_mul(4);
        let oids = self.bytes(length, "relations")?;
        let relations = oids.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid)).collect();
        Ok(Message::Truncate {
            xid,
            cascade: options & 1 != 0,
            restart_identity: options & 2 != 0,
            relations,
        })
    }

    fn logical_message(&mut self, in_stream: bool) -> Result<Message<'a>, DecodeError> {
        let (xid, transactional) = (self.xid(in_stream)?, self.flag("transactional flag")?);
        let (lsn, prefix) = (self.lsn()?, self.text("prefix")?);
        let length = self.u32("length of the content")?;
        let content = self.bytes(length as usize, "content")?;
        Ok(Message::LogicalMessage { xid, transactional, lsn, prefix, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Messages as PostgreSQL writes them, each with whether it stands in a streamed block.
    fn samples() -> Vec<(Vec<u8>, bool)> {
        let row = b"\0\x04t\0\0\0\x02ab\x6e\x75b\0\0\0\x01\xff".as_slice();
        let lsn = 0x16_B374_D848u64.to_be_bytes();
        let time = 1_000_000i64.to_be_bytes();
        let oid = 16384u32.to_be_bytes();
        let xid = 777u32.to_be_bytes();
        let mut all: Vec<(Vec<u8>, bool)> = vec![
            ([b"B".as_slice(), &lsn, &time, &xid].concat(), false),
            ([b"C\0".as_slice(), &lsn, &lsn, &time].concat(), false),
            ([b"O".as_slice(), &lsn, b"elsewhere\0"].concat(), false),
            ([b"S".as_slice(), &xid, b"\x01"].concat(), false),
            (b"E".to_vec(), true),
            ([b"c".as_slice(), &xid, b"\0", &lsn, &lsn, &time].concat(), false),
            ([b"A".as_slice(), &xid, &xid].concat(), false),
            ([b"A".as_slice(), &xid, &xid, &lsn, &time].concat(), false),
        ];
        for in_stream in [false, true] {
            let xid = if in_stream { xid.as_slice() } else { &[] };
            let relation =
                b"public\0t\0d\0\x02\x01id\0\0\0\0\x14\xff\xff\xff\xff\0v\0\0\0\0\x19\xff\xff\xff\xff";
            all.extend([
                ([b"R".as_slice(), xid, &oid, relation].concat(), in_stream),
                ([b"Y".as_slice(), xid, &oid, b"\0mood\0"].concat(), in_stream),
                ([b"I".as_slice(), xid, &oid, b"N", row].concat(), in_stream),
                ([b"U".as_slice(), xid, &oid, b"N", row].concat(), in_stream),
                ([b"U".as_slice(), xid, &oid, b"K", row, b"N", row].concat(), in_stream),
                ([b"U".as_slice(), xid, &oid, b"O", row, b"N", row].concat(), in_stream),
                ([b"D".as_slice(), xid, &oid, b"O", row].concat(), in_stream),
                ([b"T".as_slice(), xid, b"\0\0\0\x02\x03", &oid, &oid].concat(), in_stream),
                ([b"M".as_slice(), xid, b"\x01", &lsn, b"p\0\0\0\0\x02\x00\xfe"].concat(), in_stream),
            ]);
        }
        all
    }

    #[test]
    fn a_row_that_was_read_is_written_as_it_was() {
        let mut cells = Cells::default();
        let mut written = 0;
        for (body, _) in samples().into_iter().filter(|(_, in_stream)| !in_stream) {
            let mut out = Vec::new();
            match parse(&body, false, &mut cells).unwrap() {
                Message::Insert { relation, new, .. } => {
                    write_row(&mut out, Operation::Insert, relation, None, Some(new));
                }
                Message::Update { relation, old, new, .. } => {
                    write_row(&mut out, Operation::Update, relation, old, Some(new));
                }
                Message::Delete { relation, old, .. } => {
                    write_row(&mut out, Operation::Delete, relation, Some(old), None);
                }
                _ => continue,
            }
            assert_eq!(out, body);
            written += 1;
        }
        assert_eq!(written, 5);
    }

    #[test]
    fn every_message_is_read_and_every_shortening_or_lengthening_of_it_refused() {
        let mut cells = Cells::default();
        for (body, in_stream) in samples() {
            parse(&body, in_stream, &mut cells).unwrap();
            let mut longer = body.clone();
            longer.push(0);
            assert!(parse(&longer, in_stream, &mut cells).is_err(), "{longer:?}");
            for length in 0..body.len() {
                // A stream abort without its optional half is whole.
                if body[0] == b'A' && length == 9 {
                    continue;
                }
                assert!(parse(&body[..length], in_stream, &mut cells).is_err(), "{body:?} {length}");
            }
        }
    }

    #[test]
    fn a_value_that_was_not_sent_is_not_a_null() {
        let mut cells = Cells::default();
        let (body, _) =
            samples().into_iter().find(|(body, in_stream)| body[0] == b'I' && !in_stream).unwrap();
        let Ok(Message::Insert { xid: None, relation: 16384, new }) = parse(&body, false, &mut cells) else {
            panic!("not an insert")
        };
        let values: Vec<_> = new.values().collect();
        assert_eq!(values, [Value::Text(b"ab"), Value::Null, Value::Unsent, Value::Binary(&[0xff])]);
    }

    #[test]
    fn a_message_of_two_phase_commit_is_refused_by_name() {
        for kind in [b'b', b'P', b'K', b'r', b'p'] {
            let refused = parse(&[kind], false, &mut Cells::default()).unwrap_err();
            assert_eq!(refused, DecodeError::Unsupported(char::from(kind)));
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_and_a_count_that_cannot_be_are_refused() {
        let mut cells = Cells::default();
        let bad_name = [b"O".as_slice(), &[0; 8], b"\xff\0"].concat();
        assert_eq!(
            parse(&bad_name, false, &mut cells).unwrap_err(),
            DecodeError::NotUtf8 { message: 'O', field: "origin name" }
        );
        for body in [
            b"T\xff\xff\xff\xff\0\0\0\0\x01".as_slice(),
            b"I\0\0\0\x01N\xff\xff",
            b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff",
            b"M\0\0\0\0\0\0\0\0\0p\0\xff\xff\xff\xff",
        ] {
            assert!(parse(body, false, &mut cells).is_err());
        }
    }

    #[test]
    fn the_protocol_follows_the_server() {
        let versions = [(90_624, 1), (130_009, 1), (140_000, 2), (150_018, 3), (160_000, 4), (190_000, 4)];
        for (server, protocol) in versions {
            assert_eq!(protocol_for(server), protocol);
        }
    }

    fn read_everything(body: &[u8], in_stream: bool) {
        let mut cells = Cells::default();
        match parse(body, in_stream, &mut cells) {
            Ok(Message::Insert { new, .. }) => drop(new.values().collect::<Vec<_>>()),
            Ok(Message::Update { new, old: Some(Before::Key(old) | Before::Full(old)), .. }) => {
                drop(new.values().chain(old.values()).collect::<Vec<_>>());
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in proptest::collection::vec(any::<u8>(), 0..200), in_stream: bool) {
            read_everything(&body, in_stream);
        }

        #[test]
        fn any_mutation_of_a_message_is_survived(
            pick: prop::sample::Index,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            in_stream: bool,
        ) {
            let all = samples();
            let mut body = pick.get(&all).0.clone();
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            read_everything(&body, in_stream);
        }
    }
}
