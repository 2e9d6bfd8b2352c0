//! What is written at the source, to be read back. One table of ten columns, about 280 bytes a row as pgoutput sends
//! it, and three ways of writing to it.

use clap::ValueEnum;
use tokio_postgres::SimpleQueryMessage;

use super::BenchError;
use crate::change::Lsn;
use crate::postgres::connect::Control;

/// Rows that stand in the table before they are updated.
const UPDATED_ORDERS: u64 = 200_000;
const ORDERS_PER_TRANSACTION: u64 = 1_000;

/// How the source is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    /// Inserts, 1,000 rows a transaction
    Orders,
    /// Updates, one row a transaction
    Updates,
    /// Inserts in one transaction, while we read
    Big,
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

const REMOVE: &str = "
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
            Workload::Orders | Workload::Big => 2_000_000,
            Workload::Updates => 500_000,
        }
    }

    /// Whether it is written while it is read, and not before.
    pub(super) fn is_live(self) -> bool {
        self == Workload::Big
    }

    pub(super) fn transactions(self, rows: u64) -> u64 {
        match self {
            Workload::Orders => rows.div_ceil(ORDERS_PER_TRANSACTION),
            Workload::Updates => rows,
            Workload::Big => 1,
        }
    }

    /// Makes the table, with what has to be there before the slot is.
    pub(super) async fn prepare(self, control: &Control) -> Result<(), BenchError> {
        control.batch_execute(SCHEMA).await.map_err(BenchError::sql("make the table"))?;
        control
            .batch_execute("SET synchronous_commit = off")
            .await
            .map_err(BenchError::sql("prepare the session"))?;
        if self == Workload::Updates {
            let sql = format!("CALL public.place_orders(0, {UPDATED_ORDERS}, {UPDATED_ORDERS}, NULL)");
            call(control, &sql).await?;
        }
        Ok(())
    }

    /// Writes it. Gives a place in the WAL inside the last transaction.
    pub(super) async fn write(self, control: &Control, rows: u64) -> Result<Lsn, BenchError> {
        let sql = match self {
            Workload::Orders => {
                format!("CALL public.place_orders(0, {rows}, {ORDERS_PER_TRANSACTION}, NULL)")
            }
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

async fn call(control: &Control, sql: &str) -> Result<Lsn, BenchError> {
    let answer = control.simple_query(sql).await.map_err(BenchError::sql("write to the table"))?;
    let place = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    place.ok_or_else(|| BenchError::Unreadable { name: "source", said: format!("{answer:?}") })
}
