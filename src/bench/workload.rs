//! What is written at the source, to be read back: a table of ten columns, about 280 bytes a row as pgoutput sends it,
//! with three ways of writing to it; one of a hundred columns; one of large values; and one beside a thousand idle ones.

use clap::ValueEnum;
use tokio_postgres::SimpleQueryMessage;

use super::BenchError;
use crate::change::Lsn;
use crate::postgres::connect::Control;

/// Rows that stand in the table before they are updated.
const UPDATED_ORDERS: u64 = 200_000;
const ORDERS_PER_TRANSACTION: u64 = 1_000;
const WIDE_COLUMNS: usize = 100;
const WIDE_ROWS_PER_TRANSACTION: u64 = 100;
/// Rows with large values, which are updated.
const DOCUMENTS: u64 = 1_000;
const IDLE_TABLES: u64 = 1_000;

/// How the source is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    /// Inserts, 1,000 rows a transaction
    Orders,
    /// Updates, one row a transaction
    Updates,
    /// Inserts in one transaction, while we read
    Big,
    /// Inserts of rows with 100 columns, 100 rows a transaction
    Wide,
    /// Updates of rows with a value of 10 to 100 kB, one row a transaction; every other leaves that value as it is
    Toast,
    /// As orders, beside 1,000 tables to which nobody writes
    IdleTables,
}

const SCHEMA: &str = "
CREATE TABLE public.orders (
    order_id    bigint PRIMARY KEY,
    customer_id bigint NOT NULL,
    placed_at   timestamptz NOT NULL,
    changed_at  timestamptz NOT NULL,
    state       text NOT NULL,
    total       numeric(12,2) NOT NULL,
    items       integer NOT NULL,
    remark      text NOT NULL,
    details     jsonb NOT NULL,
    paid        boolean NOT NULL
);

-- Both procedures give back a place in the WAL inside their last transaction: a slot beyond it has confirmed everything
-- before that transaction, and whoever has its rows has it too.
CREATE PROCEDURE public.place_orders(first_id bigint, orders bigint, at_once bigint, INOUT inside_last pg_lsn)
LANGUAGE plpgsql AS $$
DECLARE
    next_id bigint := first_id;
    beyond_id bigint := first_id + orders;
BEGIN
    WHILE next_id < beyond_id LOOP
        INSERT INTO public.orders
        SELECT id,
               1 + id * 31 % 50000,
               timestamptz '2026-03-01 08:00:00.25+00' + id * interval '1 millisecond',
               timestamptz '2026-03-01 09:30:00.123456+00' + id * interval '1 millisecond',
               (ARRAY['open', 'paid', 'packed', 'shipped'])[1 + (id % 4)::integer],
               (id * 1277 % 900000) / 100.0,
               1 + id % 20,
               left(repeat(md5(id::text), 4), 100),
               jsonb_build_object('sku', 'A-' || id % 10000, 'weight', id % 37,
                                  'tags', jsonb_build_array('new', 'web')),
               id % 3 = 0
        FROM generate_series(next_id, least(next_id + at_once, beyond_id) - 1) AS id;
        inside_last := pg_current_wal_insert_lsn();
        COMMIT;
        next_id := next_id + at_once;
    END LOOP;
END $$;

CREATE PROCEDURE public.change_orders(changes bigint, order_count bigint, INOUT inside_last pg_lsn)
LANGUAGE plpgsql AS $$
BEGIN
    FOR n IN 1 .. changes LOOP
        UPDATE public.orders SET total = total + 1, changed_at = clock_timestamp()
        WHERE order_id = n::bigint * 7919 % order_count;
        inside_last := pg_current_wal_insert_lsn();
        COMMIT;
    END LOOP;
END $$;
";

const DOCUMENTS_SCHEMA: &str = "
CREATE TABLE public.documents (
    document_id bigint PRIMARY KEY,
    changes     bigint NOT NULL,
    body        text NOT NULL
);
-- Compressed, these bodies would be small.
ALTER TABLE public.documents ALTER body SET STORAGE EXTERNAL;

CREATE FUNCTION public.document_body(seed bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT left(repeat(md5(seed::text), 3200), (10000 + seed * 7919 % 90001)::integer) $$;

CREATE PROCEDURE public.change_documents(changes bigint, document_count bigint, INOUT inside_last pg_lsn)
LANGUAGE plpgsql AS $$
BEGIN
    FOR n IN 1 .. changes LOOP
        IF n % 2 = 0 THEN
            UPDATE public.documents SET changes = n WHERE document_id = n::bigint * 7919 % document_count;
        ELSE
            UPDATE public.documents SET changes = n, body = public.document_body(n)
            WHERE document_id = n::bigint * 7919 % document_count;
        END IF;
        inside_last := pg_current_wal_insert_lsn();
        COMMIT;
    END LOOP;
END $$;
";

const REMOVE: &str = "
DROP SCHEMA IF EXISTS bench_idle CASCADE;
DROP PROCEDURE IF EXISTS public.change_documents(bigint, bigint, pg_lsn);
DROP FUNCTION IF EXISTS public.document_body(bigint);
DROP TABLE IF EXISTS public.documents;
DROP PROCEDURE IF EXISTS public.place_wide(bigint, bigint, pg_lsn);
DROP TABLE IF EXISTS public.wide;
DROP PROCEDURE IF EXISTS public.change_orders(bigint, bigint, pg_lsn);
DROP PROCEDURE IF EXISTS public.place_orders(bigint, bigint, bigint, pg_lsn);
DROP TABLE IF EXISTS public.orders;
";

/// One more order, with a given id.
pub(super) const PLACE_ONE: &str = "
INSERT INTO public.orders VALUES ($1, 7, now(), now(), 'open', 12.50, 3,
    'c4ca4238a0b923820dcc509a6f75849bc4ca4238a0b923820dcc509a6f75849bc4ca4238a0b923820dcc509a6f75849bc4ca4238a0b92382',
    '{\"sku\": \"A-1\", \"weight\": 7, \"tags\": [\"new\", \"web\"]}', true)";

impl Workload {
    pub(super) fn default_rows(self) -> u64 {
        match self {
            Workload::Orders | Workload::Big | Workload::IdleTables => 2_000_000,
            Workload::Updates => 500_000,
            Workload::Wide => 200_000,
            Workload::Toast => 20_000,
        }
    }

    /// Whether it is written while it is read, and not before.
    pub(super) fn is_live(self) -> bool {
        self == Workload::Big
    }

    pub(super) fn transactions(self, rows: u64) -> u64 {
        match self {
            Workload::Orders | Workload::IdleTables => rows.div_ceil(ORDERS_PER_TRANSACTION),
            Workload::Wide => rows.div_ceil(WIDE_ROWS_PER_TRANSACTION),
            Workload::Updates | Workload::Toast => rows,
            Workload::Big => 1,
        }
    }

    /// Makes the tables, with what has to be there before the slot is.
    pub(super) async fn prepare(self, control: &Control) -> Result<(), BenchError> {
        let run = async |sql: &str| {
            control.batch_execute(sql).await.map_err(BenchError::sql("make what is written to"))
        };
        run("SET synchronous_commit = off").await?;
        match self {
            Workload::Orders | Workload::Big => run(SCHEMA).await,
            Workload::Updates => {
                run(SCHEMA).await?;
                run(&format!("CALL public.place_orders(0, {UPDATED_ORDERS}, {UPDATED_ORDERS}, NULL)")).await
            }
            Workload::Wide => run(&wide_schema()).await,
            Workload::Toast => {
                run(DOCUMENTS_SCHEMA).await?;
                run(&format!(
                    "INSERT INTO public.documents
                     SELECT id, 0, public.document_body(id) FROM generate_series(0, {DOCUMENTS} - 1) AS id"
                ))
                .await
            }
            Workload::IdleTables => {
                run(SCHEMA).await?;
                run(&format!(
                    "CREATE SCHEMA bench_idle;
                     DO $$ BEGIN
                         FOR n IN 1 .. {IDLE_TABLES} LOOP
                             EXECUTE format('CREATE TABLE bench_idle.%I (LIKE public.orders INCLUDING ALL)', 'idle_' || n);
                         END LOOP;
                     END $$"
                ))
                .await
            }
        }
    }

    /// Writes it. Gives a place in the WAL inside the last transaction.
    pub(super) async fn write(self, control: &Control, rows: u64) -> Result<Lsn, BenchError> {
        let sql = match self {
            Workload::Orders | Workload::IdleTables => {
                format!("CALL public.place_orders(0, {rows}, {ORDERS_PER_TRANSACTION}, NULL)")
            }
            Workload::Wide => format!("CALL public.place_wide({rows}, {WIDE_ROWS_PER_TRANSACTION}, NULL)"),
            Workload::Toast => format!("CALL public.change_documents({rows}, {DOCUMENTS}, NULL)"),
            Workload::Updates => format!("CALL public.change_orders({rows}, {UPDATED_ORDERS}, NULL)"),
            Workload::Big => format!("CALL public.place_orders(0, {rows}, {rows}, NULL)"),
        };
        call(control, &sql).await
    }

    /// Makes room for writing it again.
    pub(super) async fn clear(self, control: &Control) -> Result<(), BenchError> {
        control.batch_execute("TRUNCATE public.orders").await.map_err(BenchError::sql("empty the table"))
    }

    /// Removes everything that [`Self::prepare`] made.
    pub(super) async fn remove(control: &Control) -> Result<(), BenchError> {
        control.batch_execute(REMOVE).await.map_err(BenchError::sql("drop the table"))
    }
}

/// A table with columns of four types in turn, and the procedure that inserts into it.
fn wide_schema() -> String {
    let (mut columns, mut values) = (String::new(), String::new());
    for column in 1..WIDE_COLUMNS {
        let (type_name, value) = match column % 4 {
            0 => ("bigint", format!("id * 31 + {column}")),
            1 => ("text", format!("'column {column} of row ' || id")),
            2 => ("numeric(12,2)", format!("(id * {column} % 900000) / 100.0")),
            _ => ("timestamptz", format!("timestamptz '2026-03-01 08:00+00' + id * interval '{column} ms'")),
        };
        columns.push_str(&format!(", c{column} {type_name} NOT NULL"));
        values.push_str(&format!(", {value}"));
    }
    format!(
        "CREATE TABLE public.wide (row_id bigint PRIMARY KEY{columns});
         CREATE PROCEDURE public.place_wide(row_count bigint, at_once bigint, INOUT inside_last pg_lsn)
         LANGUAGE plpgsql AS $$
         DECLARE
             next_id bigint := 0;
         BEGIN
             WHILE next_id < row_count LOOP
                 INSERT INTO public.wide
                 SELECT id{values} FROM generate_series(next_id, least(next_id + at_once, row_count) - 1) AS id;
                 inside_last := pg_current_wal_insert_lsn();
                 COMMIT;
                 next_id := next_id + at_once;
             END LOOP;
         END $$;"
    )
}

async fn call(control: &Control, sql: &str) -> Result<Lsn, BenchError> {
    let answer = control.simple_query(sql).await.map_err(BenchError::sql("write to the table"))?;
    let place = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    place.ok_or_else(|| BenchError::Unreadable { name: "source", said: format!("{answer:?}") })
}
