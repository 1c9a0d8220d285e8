//! Signals to the process, as something that a core can wait for.

use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

/// What the process was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM: drain and end.
    Terminate,
    /// SIGINT: likewise, from a keyboard.
    Interrupt,
    /// SIGHUP: read the configuration and the certificates again.
    Hangup,
}

/// The process's signals from the call of [`signals`] on. Clones share one queue: each signal is received once.
#[derive(Clone)]
pub struct Signals {
    receiver: flume::Receiver<Signal>,
}

impl Signals {
    /// The next signal.
    pub async fn next(&self) -> Signal {
        match self.receiver.recv_async().await {
            Ok(signal) => signal,
            // The thread that sends them never ends.
            Err(flume::RecvError::Disconnected) => std::future::pending().await,
        }
    }

    /// The next signal if one has come.
    pub fn try_next(&self) -> Option<Signal> {
        self.receiver.try_recv().ok()
    }
}

/// Signals that wait to be received, at most; more of them tell nothing new.
const PENDING_MAX: usize = 16;

/// Where the handler writes; -1 before there is a pipe.
static PIPE: AtomicI32 = AtomicI32::new(-1);

static SIGNALS: Mutex<Option<Signals>> = Mutex::new(None);

/// Takes over SIGTERM, SIGINT and SIGHUP, which then no longer end the process. Every call returns the same
/// queue.
pub fn signals() -> io::Result<Signals> {
    let mut existing = SIGNALS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(signals) = existing.as_ref() {
        return Ok(signals.clone());
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: the descriptor is open. A full pipe must not block the handler.
    if unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (sender, receiver) = flume::bounded(PENDING_MAX);
    thread::Builder::new().name("krita-signals".into()).spawn(move || forward(reader, &sender))?;
    PIPE.store(writer.into_raw_fd(), Ordering::Release);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        install(signal, handle as *const () as libc::sighandler_t)?;
    }
    Ok(existing.insert(Signals { receiver }).clone())
}

/// The thread between the handler, which may do next to nothing, and the queue, which wakes a core.
fn forward(mut pipe: io::PipeReader, sender: &flume::Sender<Signal>) {
    let mut number = [0];
    while pipe.read_exact(&mut number).is_ok() {
        let signal = match i32::from(number[0]) {
            libc::SIGTERM => Signal::Terminate,
            libc::SIGINT => Signal::Interrupt,
            libc::SIGHUP => Signal::Hangup,
            _ => continue,
        };
        // Full: as many signals wait already, and one more says nothing new.
        let _ = sender.try_send(signal);
    }
}

/// Runs inside whatever the interrupted thread was doing: only `write` is allowed here.
extern "C" fn handle(signal: libc::c_int) {
    let number = signal.to_le_bytes()[0];
    // SAFETY: `write` is safe in a handler; it reads one byte that lives through the call. The interrupted
    // code must not see `errno` changed, so it is put back.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(PIPE.load(Ordering::Acquire), (&raw const number).cast(), 1);
        *errno = before;
    }
}

/// Ignores the signals that would end the process for what a system call reports as an error anyway: a write
/// to a closed connection, and a file that reached its limit.
pub(crate) fn ignore_write_signals() -> io::Result<()> {
    install(libc::SIGPIPE, libc::SIG_IGN)?;
    install(libc::SIGXFSZ, libc::SIG_IGN)
}

fn install(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: `sigaction` is a plain structure, for which all zeroes is a value: no flags, an empty mask. The
    // handler is `SIG_IGN` or a function of the right type that only does what a handler may.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
