//! Composite types that are altered while their tables stay as they are: the stream does not say so, and the catalog is
//! asked again with each poll.

use std::sync::Arc;

use tokio::time::{Instant, timeout};

use super::{CATALOG_WAIT, Session, query};
use crate::capture::CaptureError;
use crate::change::{Column, TableShape};
use crate::log::LogWriter;
use crate::postgres::catalog;

/// So many times as long as asking takes nothing is asked.
const REST: u32 = 50;

impl<W: LogWriter> Session<'_, W> {
    /// Asks what composite types are made of now, between transactions.
    pub(super) async fn renew_types(&mut self) -> Result<(), CaptureError> {
        if !self.types_due || self.capture.pipeline.in_transaction() {
            return Ok(());
        }
        self.types_due = false;
        let shapes = self.capture.pipeline.composite_shapes();
        let columns = shapes.iter().flat_map(|shape| &shape.columns);
        let types: Vec<u32> = columns.filter(is_composite).map(|column| column.type_oid).collect();
        let asked = Instant::now();
        let stamp = timeout(CATALOG_WAIT, catalog::composites_stamp(&self.control, &types))
            .await
            .map_err(query("see whether types are as they were in time"))?
            .map_err(query("see whether types are as they were"))?;
        self.types_rest_until = Instant::now() + asked.elapsed() * REST;
        if self.types_stamp.replace(stamp) != Some(stamp) {
            let now =
                catalog::source_position(&self.control).await.map_err(query("read the end of the WAL"))?;
            self.types_altered = Some(now);
        }
        // Values from before that may still be on their way.
        let processed = self.capture.pipeline.processed();
        if self.types_altered.take_if(|at| *at <= processed).is_none() {
            return Ok(());
        }
        for shape in shapes {
            let types = shape.columns.iter().filter(is_composite).map(|column| column.type_oid);
            let types: Vec<u32> = types.collect();
            let types = timeout(CATALOG_WAIT, catalog::data_types(&self.control, &types))
                .await
                .map_err(query("read the types of columns in time"))?
                .map_err(query("read the types of columns"))?;
            let mut renewed = TableShape::clone(&shape);
            for column in &mut renewed.columns {
                if let Some(now) = types.get(&column.type_oid) {
                    column.form = now.form.clone();
                }
            }
            if renewed != *shape {
                self.capture.pipeline.renew_shape(Arc::new(renewed));
            }
        }
        Ok(())
    }
}

fn is_composite(column: &&Column) -> bool {
    column.form.has_composite()
}
