//! Child processes that do not outlive the test process.
//!
//! The kernel can send a child a signal when its parent dies (`PR_SET_PDEATHSIG`), but means the parent *thread*, and
//! test threads come and go. So one thread that lives as long as the process starts all children.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

type Request = (Command, Sender<std::io::Result<Child>>);

static STARTER: LazyLock<std::sync::Mutex<Sender<Request>>> = LazyLock::new(|| {
    let (sender, requests) = channel::<Request>();
    std::thread::Builder::new()
        .name("child-starter".into())
        .spawn(move || {
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        })
        .expect("start the thread that starts children");
    std::sync::Mutex::new(sender)
});

/// Starts `command`; the kernel sends it `signal` if this process dies first.
pub(crate) fn spawn(mut command: Command, signal: libc::c_int) -> std::io::Result<Child> {
    // SAFETY: the closure runs between fork and exec and only makes an async-signal-safe system call.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let (reply, answer) = channel();
    let starter = STARTER.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    starter.send((command, reply)).expect("the child-starter thread runs for ever");
    answer.recv().expect("the child-starter thread answers")
}

/// Sends `signal` to a child that has not been waited for yet.
pub(crate) fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: plain system call; the pid is ours until the child has been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Waits for the child's end; `None` when it takes longer than `limit`.
pub(crate) async fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ends the child in a `Drop`: `signal` first, SIGKILL if it is still there after some seconds.
pub(crate) fn end(child: &mut Child, first: libc::c_int) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    signal(child, first);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
}
