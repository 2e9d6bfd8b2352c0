//! Processes of a measurement: none outlives it, and each can be asked what it has used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdout, Command};

use super::BenchError;

/// How much of a process's output goes into an error.
const LOG_END: u64 = 2_000;
/// How long a process may take to end before it is killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A running process. Dropping it ends it, and waits for that.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    end_signal: libc::c_int,
}

impl Process {
    /// Starts `command` in a process group of its own, with its output in `log`. `end_signal` is what ends it.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
        end_signal: libc::c_int,
    ) -> Result<Self, BenchError> {
        let file = open_log(&log)?;
        let stdout = file.try_clone().map_err(BenchError::io(format!("write {}", log.display())))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(file);
        Self::spawn(name, command, log, end_signal)
    }

    /// As [`Self::start`], but the standard output is for us.
    pub(super) fn start_piped(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
        end_signal: libc::c_int,
    ) -> Result<(Self, ChildStdout), BenchError> {
        let file = open_log(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut process = Self::spawn(name, command, log, end_signal)?;
        match process.child.stdout.take() {
            Some(stdout) => Ok((process, stdout)),
            None => Err(BenchError::Unreadable { name, said: String::new() }),
        }
    }

    fn spawn(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
        end_signal: libc::c_int,
    ) -> Result<Self, BenchError> {
        // Ctrl-C at the terminal is for us, who then end it in order.
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
        unsafe {
            // Should we be killed, the kernel ends it.
            command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, end_signal) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn().map_err(BenchError::io(format!("start {name}")))?;
        Ok(Process { name, child, log, end_signal })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// What it has used so far.
    pub(super) fn usage(&self) -> Result<Usage, BenchError> {
        let usage = self.child.id().ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(Usage::of);
        usage.map_err(BenchError::io(format!("read what {} has used", self.name)))
    }

    /// Its share of the memory that it uses, in bytes: what it shares with others counts in part.
    pub(super) fn proportional_memory(&self) -> Result<u64, BenchError> {
        let smaps = self.child.id().ok_or_else(|| io::ErrorKind::NotFound.into());
        let smaps = smaps.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")));
        let pss = smaps.and_then(|smaps| memory_line(&smaps, "Pss:").ok_or_else(unreadable));
        pss.map_err(BenchError::io(format!("read what {} has used", self.name)))
    }

    /// Returns when it has ended by itself, with the error that this is.
    pub(super) async fn ended(&mut self) -> BenchError {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        BenchError::Ended { name: self.name, status, log: self.log_end() }
    }

    /// Why something that depends on it has failed: that it has ended, if so.
    pub(super) async fn why(&mut self, error: BenchError) -> BenchError {
        tokio::time::timeout(Duration::from_millis(100), self.ended()).await.unwrap_or(error)
    }

    /// The end of what it said.
    pub(super) fn log_end(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
            let mut end = Vec::new();
            file.take(LOG_END).read_to_end(&mut end)?;
            Ok(end)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    fn signal(&self, signal: libc::c_int) {
        if let Some(pid) = self.child.id() {
            // SAFETY: a plain system call; the pid is the child's until it has been waited for.
            unsafe { libc::kill(pid as libc::pid_t, signal) };
        }
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }
}

impl Drop for Process {
    /// Blocks for as long as the process takes; a measurement has nothing else to do then.
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal(self.end_signal);
        let deadline = Instant::now() + END_WITHIN;
        while !self.has_ended() {
            if Instant::now() >= deadline {
                self.signal(libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn open_log(path: &Path) -> Result<File, BenchError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(BenchError::io(format!("write {}", path.display())))
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// User and system time.
    pub(super) cpu: Duration,
    /// Resident memory, in bytes.
    pub(super) memory: u64,
    /// The most that it was at any time.
    pub(super) peak_memory: u64,
}

impl Usage {
    /// What the kernel says of a process.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Usage {
            cpu: cpu_time(&stat, ticks_per_second()).ok_or_else(unreadable)?,
            memory: memory_line(&status, "VmRSS:").ok_or_else(unreadable)?,
            peak_memory: memory_line(&status, "VmHWM:").ok_or_else(unreadable)?,
        })
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not as expected")
}

fn ticks_per_second() -> u64 {
    // SAFETY: a plain library call.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

/// User and system time of a line of `/proc/<pid>/stat`, whose second field is a name in parentheses that may hold
/// anything.
fn cpu_time(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) as f64 / ticks_per_second as f64))
}

/// A line of `/proc/<pid>/status` or `smaps_rollup` that counts kB, in bytes.
fn memory_line(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_that_looks_like_fields() {
        let stat = "42 (a) S (b) R 1 42 42 0 -1 4194560 100 0 0 0 150 50 7 7 20 0 1 0 1 1 1";
        assert_eq!(cpu_time(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(cpu_time("42 (x) R 1 2", 100), None);
    }

    #[test]
    fn memory_is_read_by_name() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(memory_line(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(memory_line(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(memory_line(status, "VmSwap:"), None);
    }

    #[test]
    fn our_own_usage_is_known() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.memory > 0 && usage.peak_memory >= usage.memory);
    }
}
