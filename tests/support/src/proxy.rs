//! A TCP proxy between Millrace and its source, which a test points at a server, cuts, freezes and closes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// How often a frozen link looks whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// A proxy of 127.0.0.1, open until told otherwise.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    target: AtomicU16,
    closed: AtomicBool,
    frozen: AtomicBool,
    ended: AtomicBool,
    /// Both ends of every link.
    links: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy to a port of 127.0.0.1.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind the proxy");
        let state = Arc::new(State {
            target: AtomicU16::new(port),
            closed: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            links: Mutex::default(),
        });
        let port = listener.local_addr().expect("read the proxy's address").port();
        let acceptor = spawn({
            let state = state.clone();
            move || state.accept(&listener)
        });
        Proxy { port, state, acceptor: Some(acceptor) }
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// New connections go to another port of 127.0.0.1; those that there are end.
    pub fn point_at(&self, port: u16) {
        self.lead_to(port);
        self.cut();
    }

    /// New connections go to another port of 127.0.0.1; those that there are stay where they are.
    pub fn lead_to(&self, port: u16) {
        self.state.target.store(port, Relaxed);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for link in self.state.links().drain(..) {
            // It may have ended already.
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    /// Ends all connections, and every new one at once.
    pub fn close(&self) {
        self.state.closed.store(true, Relaxed);
        self.cut();
    }

    /// Takes connections again.
    pub fn open(&self) {
        self.state.closed.store(false, Relaxed);
    }

    /// Whether connections stay and nothing passes: neither side is told.
    pub fn freeze(&self, frozen: bool) {
        self.state.frozen.store(frozen, Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Relaxed);
        self.freeze(false);
        self.close();
        // Wakes the acceptor, which then sees that it is over.
        drop(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))));
        if let Some(acceptor) = self.acceptor.take() {
            // If it has panicked, so has the test.
            let _ = acceptor.join();
        }
    }
}

impl State {
    fn links(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for inner in listener.incoming() {
            if self.ended.load(Relaxed) {
                return;
            }
            let target = SocketAddr::from(([127, 0, 0, 1], self.target.load(Relaxed)));
            if self.closed.load(Relaxed) {
                continue;
            }
            let (Ok(inner), Ok(outer)) = (inner, TcpStream::connect(target)) else { continue };
            let mut links = self.links();
            for (from, to) in [(&inner, &outer), (&outer, &inner)] {
                from.set_nodelay(true).expect("set a socket's option");
                links.push(from.try_clone().expect("share a socket"));
                let (from, to) =
                    (from.try_clone().expect("share a socket"), to.try_clone().expect("share a socket"));
                let state = self.clone();
                spawn(move || state.pass(from, to));
            }
        }
    }

    /// Copies until either end closes.
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(read) if read > 0 => read,
                _ => break,
            };
            while self.frozen.load(Relaxed) {
                sleep(LOOK);
            }
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        for end in [from, to] {
            // The other direction may have done it.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}
