//! The least that a reader of existing rows can do: COPY of the whole table, by as many connections, kept nowhere.

use std::io::Write;

use clap::Args;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::BenchError;
use crate::postgres::connect;
use crate::postgres::replication::CopyConnection;
use crate::postgres::source::SourceConfig;

/// `millrace bench bare-copy`
#[derive(Debug, Args)]
pub(super) struct BareCopy {
    /// The database
    source: String,
    /// The table
    #[arg(long)]
    table: String,
    /// How many connections share it
    #[arg(long)]
    connections: u32,
}

/// What it has read; printed as a line of JSON at the end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct BareCopied {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl BareCopy {
    /// Reads all rows, and says how many.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        let source = SourceConfig::parse(&self.source)?;
        let control = connect::connect(&source).await?;
        let sql = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int8";
        let failed = || BenchError::sql("measure the table");
        let row = control.query_one(sql, &[&self.table]).await.map_err(failed())?;
        let blocks: i64 = row.try_get(0).map_err(failed())?;
        let parts = i64::from(self.connections);
        let read =
            (0..parts).map(|part| self.read(&source, blocks * part / parts, blocks * (part + 1) / parts));
        let each = try_join_all(read).await?;
        let copied = BareCopied {
            rows: each.iter().map(|copied| copied.rows).sum(),
            bytes: each.iter().map(|copied| copied.bytes).sum(),
        };
        let line = serde_json::to_string(&copied).map_err(std::io::Error::from);
        line.and_then(|line| writeln!(std::io::stdout(), "{line}"))
            .map_err(BenchError::io("say what was read"))
    }

    async fn read(&self, source: &SourceConfig, from: i64, to: i64) -> Result<BareCopied, BenchError> {
        let mut connection = CopyConnection::connect(source).await?;
        // One connection alone reads the table as a table, which is the quickest.
        let copy = match self.connections {
            1 => format!("COPY {} TO STDOUT", self.table),
            _ => format!(
                "COPY (SELECT * FROM {} WHERE ctid >= '({from},0)' AND ctid < '({to},0)') TO STDOUT",
                self.table
            ),
        };
        let mut copied = BareCopied { rows: 0, bytes: 0 };
        let count = |line: &[u8]| {
            copied.rows += 1;
            copied.bytes += line.len() as u64;
            Ok(())
        };
        connection.run_each(&copy, count).await.map_err(|error| BenchError::Io {
            what: "read the table".to_owned(),
            source: std::io::Error::other(error),
        })?;
        Ok(copied)
    }
}
