//! A file system in memory that loses what was not fsynced.
//!
//! It remembers, for each file, what has been made durable and every version of each 4 KiB page since; and for the
//! directory, every change of a name since it was fsynced. Losing power keeps what is durable, and of the rest a random
//! subset: any version of a page or none, any of the sizes in between, any of the changed names. That is what real file
//! systems promise, and no more.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::files::{File, Files, Open};

const PAGE: usize = 4096;

/// Small, seeded and good enough (SplitMix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Contents that a page has had since the last fsync.
    versions: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Sizes that the file has had since then.
    sizes: Vec<usize>,
}

impl Inode {
    fn touched(&mut self, from: usize, to: usize) {
        for page in from / PAGE..to.div_ceil(PAGE) {
            let end = self.live.len().min((page + 1) * PAGE);
            let content = self.live.get(page * PAGE..end).unwrap_or(&[]).to_vec();
            self.versions.entry(page).or_default().push(content);
        }
    }

    fn resize(&mut self, len: usize) {
        let old = self.live.len();
        self.live.resize(len, 0);
        self.sizes.push(len);
        self.touched(old.min(len), (old.min(len) + 1).min(old.max(len)));
    }

    /// What is lost now is lost: a failed fsync leaves the pages clean.
    fn sync(&mut self, keep: impl Fn() -> bool) {
        self.durable.resize(self.live.len(), 0);
        for page in std::mem::take(&mut self.versions).into_keys() {
            let end = self.live.len().min((page + 1) * PAGE);
            if page * PAGE < end && keep() {
                self.durable[page * PAGE..end].copy_from_slice(&self.live[page * PAGE..end]);
            }
        }
        self.sizes.clear();
    }

    fn crash(&mut self, random: &mut Random) {
        self.sizes.push(self.durable.len());
        let len = self.sizes[random.below(self.sizes.len())];
        let mut content = std::mem::take(&mut self.durable);
        content.resize(len, 0);
        for (page, versions) in std::mem::take(&mut self.versions) {
            let chosen = random.below(versions.len() + 1);
            if let Some(version) = versions.get(chosen) {
                let start = (page * PAGE).min(len);
                let end = (start + version.len()).min(len);
                content[start..end].copy_from_slice(&version[..end - start]);
            }
        }
        *self = Inode { live: content.clone(), durable: content, ..Inode::default() };
    }
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

type Names = BTreeMap<PathBuf, u64>;

fn change(names: &mut Names, change: NameChange) {
    match change {
        NameChange::Set(path, inode) => drop(names.insert(path, inode)),
        NameChange::Remove(path) => drop(names.remove(&path)),
        NameChange::Rename(from, to, inode) => {
            names.remove(&from);
            names.insert(to, inode);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    inodes: HashMap<u64, Inode>,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
    next_inode: u64,
    /// Handles of before the last crash are dead.
    boots: u64,
    /// How often a file has been renamed.
    renames: u64,
    /// Operations until the power goes, and whether it is gone.
    power: Option<u64>,
    off: bool,
    /// Bytes that files may still grow by.
    space: Option<u64>,
    /// Fsyncs until one fails.
    failing_sync: Option<u64>,
    /// Fsyncs do nothing: a disk that lies.
    lying: bool,
}

impl State {
    /// Counts an operation that changes something. `true` when the power goes with it.
    fn tick(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        if let Some(left) = &mut self.power {
            self.off = *left == 0;
            *left = left.saturating_sub(1);
        }
        Ok(self.off)
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }

    fn rename_or_so(&mut self, done: NameChange) -> io::Result<()> {
        let last = self.tick()?;
        change(&mut self.names, done.clone());
        self.unsynced_names.push(done);
        went_off(last)
    }

    fn fails_now(&mut self) -> bool {
        match &mut self.failing_sync {
            Some(0) => {
                self.failing_sync = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

fn went_off(last: bool) -> io::Result<()> {
    if last { Err(io::Error::other("the power went off")) } else { Ok(()) }
}

/// The file system. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct SimFiles(Arc<Mutex<State>>);

impl SimFiles {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A disk whose fsyncs do nothing.
    pub fn lying() -> Self {
        let files = SimFiles::default();
        files.state().lying = true;
        files
    }

    /// The power goes off after so many operations.
    pub fn power_off_after(&self, operations: u64) {
        self.state().power = Some(operations);
    }

    /// Files may grow by so much more; without limit if `None`.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.state().space = bytes;
    }

    /// The fsync after `n` others fails.
    pub fn fail_sync_after(&self, n: u64) {
        self.state().failing_sync = Some(n);
    }

    pub fn renames(&self) -> u64 {
        self.state().renames
    }

    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// The process died and the machine lives: all that was written stays, not fsynced as it is.
    pub fn kill(&self) {
        let mut state = self.state();
        state.boots += 1;
        (state.power, state.off, state.space, state.failing_sync) = (None, false, None, None);
    }

    /// The power went off and comes back.
    pub fn crash(&self, random: &mut Random) {
        self.kill();
        let mut state = self.state();
        let mut names = std::mem::take(&mut state.durable_names);
        for done in std::mem::take(&mut state.unsynced_names) {
            if random.one_in(2) {
                change(&mut names, done);
            }
        }
        let mut inodes: Vec<_> = names.values().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            state.inode(inode).crash(random);
        }
        state.durable_names = names.clone();
        state.names = names;
    }
}

impl Files for SimFiles {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        let inode = match (state.names.get(path).copied(), how) {
            (Some(inode), Open::Read | Open::Write) => inode,
            (None, Open::Read | Open::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(inode), Open::Create) => {
                let last = state.tick()?;
                state.inode(inode).resize(0);
                went_off(last)?;
                inode
            }
            (None, Open::Create) => {
                state.next_inode += 1;
                let inode = state.next_inode;
                state.rename_or_so(NameChange::Set(path.to_owned(), inode))?;
                inode
            }
        };
        let boot = state.boots;
        Ok(Arc::new(SimFile { files: self.clone(), inode, boot }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.renames += 1;
        state.rename_or_so(NameChange::Rename(from.to_owned(), to.to_owned(), inode))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let len = state.inode(inode).live.len() as u64;
        if let Some(space) = &mut state.space {
            *space += len;
        }
        state.rename_or_so(NameChange::Remove(path.to_owned()))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        let last = state.tick()?;
        if !state.lying && !last {
            state.unsynced_names.clear();
            state.durable_names = state.names.clone();
        }
        went_off(last)
    }
}

#[derive(Debug)]
struct SimFile {
    files: SimFiles,
    inode: u64,
    boot: u64,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.files.state();
        if state.boots == self.boot { Ok(state) } else { Err(io::Error::other("the machine was restarted")) }
    }
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state()?.inode(self.inode).live.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], position: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let from = position as usize;
        let live = &state.inode(self.inode).live;
        let bytes = live.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let last = state.tick()?;
        let from = position as usize;
        let len = state.inode(self.inode).live.len();
        let growth = (from + bytes.len()).saturating_sub(len);
        let mut fits = bytes.len();
        if let Some(space) = &mut state.space {
            fits -= (growth as u64).saturating_sub(*space).min(bytes.len() as u64) as usize;
            *space = space.saturating_sub(growth as u64);
        }
        let inode = state.inode(self.inode);
        if fits > 0 && from + fits > len {
            inode.resize(from + fits);
        }
        if fits > 0 {
            inode.live[from..from + fits].copy_from_slice(&bytes[..fits]);
            inode.touched(from, from + fits);
        }
        went_off(last)?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let last = state.tick()?;
        let freed = (state.inode(self.inode).live.len() as u64).saturating_sub(len);
        if let Some(space) = &mut state.space {
            *space += freed;
        }
        state.inode(self.inode).resize(len as usize);
        went_off(last)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state()?;
        let last = state.tick()?;
        if last {
            return went_off(last);
        }
        if state.fails_now() {
            let inode = state.inode(self.inode);
            let before = inode.durable.clone();
            inode.sync(|| false);
            // The size may not have reached the disk either.
            inode.durable = before;
            inode.sizes.push(inode.live.len());
            return Err(io::Error::other("the disk says no"));
        }
        if !state.lying {
            state.inode(self.inode).sync(|| true);
        }
        Ok(())
    }
}
