//! Snapshots that people ask for of tables of a running task: saved when they are asked for, and until the changes of those
//! tables are held.

use std::fmt;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::postgres::objects::Pattern;
use crate::state::{StateError, Store};

/// The saved fact that holds them, as JSON.
const WANTED: &str = "wanted_snapshots";

/// The snapshots that are wanted of a task.
pub struct SnapshotRequests {
    store: Arc<Store>,
    task: String,
    wanted: watch::Sender<Vec<Pattern>>,
    /// Taken while they are changed and saved, by threads that may block.
    changing: Mutex<()>,
}

impl fmt::Debug for SnapshotRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SnapshotRequests").field(&self.wanted.borrow()).finish()
    }
}

impl SnapshotRequests {
    /// Those that are saved. Blocking.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn open(store: Arc<Store>, task: &str) -> Result<Self, StateError> {
        let saved = store.fact(task, WANTED)?;
        // What a later version has written there is asked for again by who misses it.
        let wanted = saved.and_then(|saved| serde_json::from_str(&saved).ok()).unwrap_or_default();
        let wanted = watch::Sender::new(wanted);
        Ok(SnapshotRequests { store, task: task.to_owned(), wanted, changing: Mutex::new(()) })
    }

    /// The tables that are wanted now.
    pub fn wanted(&self) -> Vec<Pattern> {
        self.wanted.borrow().clone()
    }

    /// Asks for more, durably.
    ///
    /// # Errors
    /// [`StateError`]
    pub async fn add(self: Arc<Self>, patterns: Vec<Pattern>) -> Result<(), StateError> {
        self.change(move |wanted| {
            for pattern in patterns {
                if !wanted.contains(&pattern) {
                    wanted.push(pattern);
                }
            }
        })
        .await
    }

    /// These are under way.
    ///
    /// # Errors
    /// [`StateError`]
    pub async fn done(self: Arc<Self>, patterns: Vec<Pattern>) -> Result<(), StateError> {
        self.change(move |wanted| wanted.retain(|pattern| !patterns.contains(pattern))).await
    }

    async fn change(
        self: Arc<Self>,
        change: impl FnOnce(&mut Vec<Pattern>) + Send + 'static,
    ) -> Result<(), StateError> {
        let save = move || {
            let _changing = self.changing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mut wanted = self.wanted();
            change(&mut wanted);
            let text = serde_json::Value::from(wanted.iter().map(Pattern::to_string).collect::<Vec<_>>());
            self.store.set_fact(&self.task, WANTED, &text.to_string())?;
            self.wanted.send_replace(wanted);
            Ok(())
        };
        match tokio::task::spawn_blocking(save).await {
            Ok(saved) => saved,
            Err(ended) => Err(StateError::Io {
                operation: "save a request for a snapshot in",
                path: "state.db".into(),
                source: std::io::Error::other(ended),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DataDir;

    #[tokio::test]
    async fn what_is_wanted_survives_a_restart_until_it_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&DataDir::open(directory.path()).unwrap()).unwrap());
        store.add_task("t", "{}", "created", "", 0).unwrap();
        let open = || Arc::new(SnapshotRequests::open(store.clone(), "t").unwrap());
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        open().add(patterns(&["public.a", "\"x.y\".*"])).await.unwrap();
        open().add(patterns(&["public.a", "public.b"])).await.unwrap();
        assert_eq!(open().wanted(), patterns(&["public.a", "\"x.y\".*", "public.b"]));
        let requests = open();
        requests.clone().done(patterns(&["public.a", "public.b"])).await.unwrap();
        assert_eq!(
            (requests.wanted(), open().wanted()),
            (patterns(&["\"x.y\".*"]), patterns(&["\"x.y\".*"]))
        );
    }
}
