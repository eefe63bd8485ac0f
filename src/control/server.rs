//! The daemon's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, Shutdown};

use super::wait::{self, Outcome};
use super::watch::Watch;
use super::{
    ControlBackend, ControlError, DEFAULT_ROWS, MAX_REQUEST, MAX_ROWS, Reply, Request, address_of,
};
use crate::bundle::RelPath;

/// Connections at one time. Each `wait` holds one; a script that waits for many files names them in one call.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send its request or to take its reply. Clients are local programs.
const STALL: Duration = Duration::from_secs(5);

/// A look at what is waited for that takes less than a quarter of this is taken again at every change.
const QUICK: Duration = Duration::from_millis(20);

/// Time between two looks of `status --watch`, however much changes; longer after a look that took long.
const WATCH_PACE: Duration = Duration::from_millis(200);

/// A connection thread decodes one request and encodes one reply on the heap; its stack stays shallow.
const STACK: usize = 512 * 1024;

/// The running control socket.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Server {
    /// Binds `path`, replacing what a dead daemon left there, and answers from now on. The caller holds the lock of
    /// the state directory.
    pub(crate) fn start(
        path: &Path,
        backend: Arc<dyn ControlBackend>,
    ) -> Result<Self, ControlError> {
        let failed = |action| {
            move |source| ControlError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(failed("replace")(err)),
        }
        let (_dir, address) = address_of(path).map_err(failed("bind"))?;
        let listener = Arc::new(UnixListener::bind(&address).map_err(failed("bind"))?);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("protect"))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let accepting = {
            let (listener, stopping) = (Arc::clone(&listener), Arc::clone(&stopping));
            std::thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || accept(&listener, &backend, &stopping))
                .map_err(failed("serve"))?
        };
        Ok(Self {
            listener,
            stopping,
            accepting: Some(accepting),
            path: path.to_owned(),
        })
    }

    /// Ends all connections and removes the socket.
    #[cfg(test)]
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(accepting) = self.accepting.take() else {
            return;
        };
        self.stopping.store(true, Ordering::Release);
        // Makes the accept that is waiting return with EINVAL.
        if rustix::net::shutdown(&*self.listener, Shutdown::Both).is_err() {
            tracing::warn!("the control socket could not be shut down");
            return;
        }
        if accepting.join().is_err() {
            tracing::error!("the control thread panicked");
        }
        if let Err(err) = std::fs::remove_file(&self.path) {
            tracing::debug!("control socket: {err}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &UnixListener, backend: &Arc<dyn ControlBackend>, stopping: &Arc<AtomicBool>) {
    // The second handle of each stream is there to wake its thread at the end.
    let mut connections: Vec<(JoinHandle<()>, Arc<UnixStream>)> = Vec::new();
    while !stopping.load(Ordering::Acquire) {
        let stream = match listener.accept() {
            Ok((stream, _)) => Arc::new(stream),
            Err(_) if stopping.load(Ordering::Acquire) => break,
            Err(err) => {
                // Out of descriptors, as a rule: nothing to do but to let others end.
                tracing::warn!("control socket: {err}");
                std::thread::park_timeout(Duration::from_millis(100));
                continue;
            }
        };
        connections.retain(|(connection, _)| !connection.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            refuse(
                &stream,
                "the daemon has too many control connections; try again",
            );
            continue;
        }
        let (backend, stopping, ours) = (
            Arc::clone(backend),
            Arc::clone(stopping),
            Arc::clone(&stream),
        );
        let spawned = std::thread::Builder::new()
            .name("control-client".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                serve(&stream, &*backend, &stopping);
                // The other handle would keep the connection open.
                let _gone = stream.shutdown(std::net::Shutdown::Both);
            });
        match spawned {
            Ok(connection) => connections.push((connection, ours)),
            Err(err) => tracing::warn!("no thread for a control connection: {err}"),
        }
    }
    for (connection, stream) in connections {
        let _gone = stream.shutdown(std::net::Shutdown::Read);
        if connection.join().is_err() {
            tracing::error!("a control connection panicked");
        }
    }
}

/// Answers requests until the client hangs up, stalls or breaks the protocol.
fn serve(stream: &UnixStream, backend: &dyn ControlBackend, stopping: &AtomicBool) {
    if stream
        .set_read_timeout(Some(STALL))
        .and(stream.set_write_timeout(Some(STALL)))
        .is_err()
    {
        return;
    }
    if !is_allowed(stream) {
        refuse(stream, "this daemon belongs to another user");
        return;
    }
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while !stopping.load(Ordering::Acquire) {
        line.clear();
        match (&mut reader).take(MAX_REQUEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.last() != Some(&b'\n') => {
                refuse(stream, "the request is too long or was cut off");
                return;
            }
            Ok(_) => {}
        }
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, stream, backend, stopping),
            Err(err) => Some(Reply::Error {
                message: format!("unknown request: {err}"),
            }),
        };
        let Some(reply) = reply else { return };
        if send(stream, &reply).is_err() {
            return;
        }
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) => peer.uid.is_root() || peer.uid == rustix::process::geteuid(),
        Err(_) => false,
    }
}

fn refuse(stream: &UnixStream, message: &str) {
    let _gone = stream.set_write_timeout(Some(STALL));
    if send(
        stream,
        &Reply::Error {
            message: message.to_owned(),
        },
    )
    .is_err()
    {
        tracing::debug!("a control client left before it was refused");
    }
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The answer to one request; `None` when the client has gone.
fn answer(
    request: Request,
    stream: &UnixStream,
    backend: &dyn ControlBackend,
    stopping: &AtomicBool,
) -> Option<Reply> {
    Some(match request {
        Request::Status {
            before,
            limit,
            unfinished_first,
        } => {
            let limit = limit.unwrap_or(DEFAULT_ROWS).min(MAX_ROWS);
            Reply::Status(Box::new(match (unfinished_first, before) {
                (true, None) => backend.unfinished(limit),
                (true, Some(_)) | (false, _) => backend.status(before, limit),
            }))
        }
        Request::Watch { limit } => {
            let limit = limit.unwrap_or(DEFAULT_ROWS).min(MAX_ROWS);
            watch(limit, stream, backend, stopping);
            return None;
        }
        Request::Of { path, inbox } => or_error(
            RelPath::try_from(&path)
                .map(|path| Reply::Of(backend.of(&path, inbox)))
                .map_err(|err| err.to_string()),
        ),
        Request::Place => backend.place(),
        Request::Peers => Reply::Peers {
            peers: backend.peers(),
        },
        Request::Ticket => Reply::Ticket {
            ticket: backend.ticket(),
        },
        Request::Invite { seconds, once } => {
            let made = backend.invite(seconds.map(Duration::from_secs), once);
            or_error(made.map(|ticket| Reply::Ticket { ticket }))
        }
        Request::Remove { who, keep_key } => {
            or_error(backend.remove(&who, keep_key).map(Reply::Changed))
        }
        Request::Forget { who } => or_error(backend.forget(&who).map(Reply::Forgotten)),
        Request::Leave { force } => or_error(backend.leave(force).map(Reply::Left)),
        Request::Rekey => or_error(backend.rekey().map(Reply::Changed)),
        Request::Wait {
            paths,
            bundles,
            to,
            timeout_ms,
            progress_ms,
        } => {
            let deadline =
                timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
            let watch = Watch::new(&paths, &bundles, to, backend);
            let every = progress_ms.map(Duration::from_millis);
            return wait_for(watch, deadline, every, (stream, stopping), backend);
        }
        Request::Send { path } => match RelPath::try_from(&path) {
            Ok(path) => match backend.send(&path) {
                Ok(()) => Reply::Done,
                Err(message) => Reply::Error { message },
            },
            Err(err) => Reply::Error {
                message: err.to_string(),
            },
        },
        Request::Act { act } => Reply::Acted(backend.act(act)),
        Request::Stop => {
            backend.stop();
            Reply::Done
        }
    })
}

fn or_error(reply: Result<Reply, String>) -> Reply {
    reply.unwrap_or_else(|message| Reply::Error { message })
}

/// Looks again at each change, but after a look that took long not before four times as long has passed.
fn wait_for(
    mut watch: Watch,
    deadline: Option<Instant>,
    every: Option<Duration>,
    (stream, stopping): (&UnixStream, &AtomicBool),
    backend: &dyn ControlBackend,
) -> Option<Reply> {
    let mut seen = backend.wait_change(0, Duration::ZERO);
    let mut told: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        if let Some(outcome) = watch.look(backend) {
            return Some(Reply::Waited(watch.outcome(outcome)));
        }
        let cost = begun.elapsed();
        let mut left = deadline.map_or(wait::LOOK_AGAIN, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            return Some(Reply::Waited(watch.outcome(Outcome::Timeout)));
        }
        if let Some(every) = every {
            let due = every.saturating_sub(told.map_or(every, |told| told.elapsed()));
            if due.is_zero() && takes_more(stream) {
                send(stream, &Reply::Progress(watch.progress().clone())).ok()?;
                told = Some(Instant::now());
            }
            left = left.min(if due.is_zero() { every } else { due });
        }
        rest(cost, deadline, (stream, stopping));
        if stopping.load(Ordering::Acquire) {
            return Some(Reply::Error {
                message: "the daemon is stopping".to_owned(),
            });
        }
        if has_hung_up(stream) {
            return None;
        }
        if let Some(deadline) = deadline {
            left = left.min(deadline.saturating_duration_since(Instant::now()));
        }
        seen = backend.wait_change(seen, left.min(wait::LOOK_AGAIN));
    }
}

/// Rests after a look four times as long as it took, at most until the deadline, the hang-up or the end of the daemon.
fn rest(cost: Duration, deadline: Option<Instant>, (stream, stopping): (&UnixStream, &AtomicBool)) {
    let mut left = cost.saturating_mul(4).saturating_sub(QUICK);
    if let Some(deadline) = deadline {
        left = left.min(deadline.saturating_duration_since(Instant::now()));
    }
    while !left.is_zero() && !stopping.load(Ordering::Acquire) && !has_hung_up(stream) {
        let slice = left.min(wait::LOOK_AGAIN);
        std::thread::sleep(slice);
        left -= slice;
    }
}

/// Whether the client reads what it is sent: one that was stopped is told how far it is when it goes on.
fn takes_more(stream: &UnixStream) -> bool {
    let mut looked = [PollFd::new(stream, PollFlags::OUT)];
    matches!(poll(&mut looked, Some(&Timespec::default())), Ok(1..))
}

/// Sends a page of status, then what changes in it, until the client hangs up or the daemon ends.
fn watch(limit: usize, stream: &UnixStream, backend: &dyn ControlBackend, stopping: &AtomicBool) {
    let mut seen = backend.wait_change(0, Duration::ZERO);
    let begun = Instant::now();
    let mut page = backend.unfinished(limit);
    let mut cost = begun.elapsed();
    if send(stream, &Reply::Status(Box::new(page.clone()))).is_err() {
        return;
    }
    while !stopping.load(Ordering::Acquire) && !has_hung_up(stream) {
        std::thread::sleep(WATCH_PACE);
        rest(
            cost.saturating_sub(WATCH_PACE / 4),
            None,
            (stream, stopping),
        );
        seen = backend.wait_change(seen, wait::LOOK_AGAIN);
        let begun = Instant::now();
        let new = backend.unfinished(limit);
        cost = begun.elapsed();
        if let Some(news) = super::follow::news(&page, &new)
            && send(stream, &Reply::News(Box::new(news))).is_err()
        {
            return;
        }
        page = new;
    }
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut byte = [0u8; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(stream.as_fd(), &mut byte, flags) {
        Ok((_, 0)) => true,
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{RelPath, Stage};
    use crate::control::wait::{Delivery, WaitFor};
    use crate::control::{Client, PeerRow, Status, WirePath};
    use crate::spool::{Counts, OutboundRow, RecipientRow};
    use parking_lot::{Condvar, Mutex};

    /// A daemon whose one file `x` is delivered when the test says so.
    #[derive(Default)]
    struct Fake {
        state: Mutex<(u64, bool)>,
        looked: AtomicBool,
        changed: Condvar,
        stopped: AtomicBool,
    }

    impl Fake {
        fn deliver(&self) {
            let mut state = self.state.lock();
            *state = (state.0 + 1, true);
            self.changed.notify_all();
        }
    }

    impl ControlBackend for Fake {
        fn status(&self, _before: Option<u64>, limit: usize) -> Status {
            Status {
                version: "0".into(),
                id: String::new(),
                name: "alder".into(),
                group: String::new(),
                mountpoint: String::new(),
                state: String::new(),
                pid: 0,
                listen: vec![],
                peers: vec![],
                outbound: vec![],
                inbound: vec![],
                outbound_more: 0,
                inbound_more: 0,
                incomplete: vec![],
                ignored: vec![],
                ignored_more: false,
                trouble: None,
                counts: Counts {
                    sealed: limit as u64,
                    receipts: u64::from(self.state.lock().1),
                    ..Counts::default()
                },
            }
        }
        fn peers(&self) -> Vec<PeerRow> {
            vec![]
        }
        fn ticket(&self) -> String {
            "meshbox1x".into()
        }
        fn delivery(&self, path: &RelPath) -> Delivery {
            self.looked.store(true, Ordering::Release);
            if path.as_bytes() != b"x" {
                return Delivery::Unknown;
            }
            let state = if self.state.lock().1 {
                Stage::Delivered
            } else {
                Stage::Queued
            };
            Delivery::Sealed(OutboundRow {
                path: "x".into(),
                path_b64: None,
                bundle: String::new(),
                sha256: String::new(),
                size: 0,
                sealed_at: 0,
                state,
                recipients: vec![RecipientRow {
                    id: "bb".into(),
                    name: "birch".into(),
                    state,
                    bytes: 0,
                    error: None,
                    gone: false,
                }],
            })
        }
        fn wait_change(&self, seen: u64, at_most: Duration) -> u64 {
            let mut state = self.state.lock();
            if state.0 == seen {
                self.changed.wait_for(&mut state, at_most);
            }
            state.0
        }
        fn send(&self, path: &RelPath) -> Result<(), String> {
            Err(format!("{} is not there", path.as_path().display()))
        }
        fn act(&self, act: crate::control::act::Act) -> crate::control::act::Acted {
            crate::control::act::Acted::done(format!("{act:?}"))
        }
        fn stop(&self) {
            self.stopped.store(true, Ordering::Release);
        }
    }

    struct Room {
        dir: tempfile::TempDir,
        fake: Arc<Fake>,
        server: Server,
    }

    impl Room {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let fake = Arc::new(Fake::default());
            let server =
                Server::start(&dir.path().join("control.sock"), Arc::clone(&fake) as _).unwrap();
            Self { dir, fake, server }
        }
        fn client(&self) -> Client {
            Client::connect(self.dir.path()).unwrap()
        }
        fn raw(&self) -> UnixStream {
            let stream = UnixStream::connect(self.dir.path().join("control.sock")).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            stream
        }
    }

    fn wait_request(path: &str, timeout_ms: Option<u64>) -> Request {
        Request::Wait {
            paths: vec![WirePath::Text(path.into())],
            bundles: vec![],
            to: WaitFor::All,
            timeout_ms,
            progress_ms: None,
        }
    }

    fn outcome(reply: Reply) -> Outcome {
        match reply {
            Reply::Waited(waited) => waited.outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_connection_asks_again_and_again() {
        let room = Room::new();
        let mut client = room.client();
        assert!(
            matches!(client.call(&Request::Ticket).unwrap(), Reply::Ticket { ticket } if ticket == "meshbox1x")
        );
        let status = Request::Status {
            before: None,
            limit: Some(usize::MAX),
            unfinished_first: false,
        };
        assert!(
            matches!(client.call(&status).unwrap(), Reply::Status(s) if s.counts.sealed == MAX_ROWS as u64)
        );
        let send = Request::Send {
            path: WirePath::Text("no".into()),
        };
        assert!(
            matches!(client.call(&send), Err(ControlError::Refused(why)) if why == "no is not there")
        );
        assert!(matches!(client.call(&Request::Stop).unwrap(), Reply::Done));
        assert!(room.fake.stopped.load(Ordering::Acquire));
    }

    #[test]
    fn a_watch_shows_a_page_and_then_what_changes() {
        let room = Room::new();
        let mut client = room.client();
        let limit = Some(7);
        assert!(matches!(
            client.call(&Request::Watch { limit }).unwrap(),
            Reply::Status(page) if page.counts.sealed == 7
        ));
        room.fake.deliver();
        let Reply::News(news) = client.next().unwrap() else {
            panic!("no news")
        };
        assert_eq!(news.counts.receipts, 1);
        drop(client);
    }

    #[test]
    fn the_socket_is_for_its_owner_only_and_goes_with_the_server() {
        let room = Room::new();
        let path = room.dir.path().join("control.sock");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(room.client().daemon_pid(), Some(std::process::id()));
        room.server.stop();
        assert!(!path.exists());
        assert!(matches!(
            Client::connect(room.dir.path()),
            Err(ControlError::NotRunning(_))
        ));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_means_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(
            Client::connect(dir.path()),
            Err(ControlError::NotRunning(_))
        ));
        let server = Server::start(&path, Arc::new(Fake::default())).unwrap();
        assert!(Client::connect(dir.path()).is_ok());
        server.stop();
    }

    #[test]
    fn a_path_too_long_for_a_socket_address_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let server = Server::start(&deep.join("control.sock"), Arc::new(Fake::default())).unwrap();
        assert!(
            Client::connect(&deep)
                .unwrap()
                .call(&Request::Peers)
                .is_ok()
        );
        server.stop();
    }

    #[test]
    fn s15_wait_comes_back_when_delivered_and_never_misses_the_last_change() {
        let room = Room::new();
        let waiting = std::thread::spawn({
            let mut client = room.client();
            move || outcome(client.call(&wait_request("x", None)).unwrap())
        });
        room.fake.deliver();
        assert_eq!(waiting.join().unwrap(), Outcome::Delivered);
        assert_eq!(
            outcome(room.client().call(&wait_request("x", Some(0))).unwrap()),
            Outcome::Delivered
        );
    }

    #[test]
    fn wait_tells_timeout_from_failure() {
        let room = Room::new();
        assert_eq!(
            outcome(room.client().call(&wait_request("x", Some(0))).unwrap()),
            Outcome::Timeout
        );
        assert_eq!(
            outcome(room.client().call(&wait_request("x", Some(1))).unwrap()),
            Outcome::Timeout
        );
        assert_eq!(
            outcome(room.client().call(&wait_request("gone", None)).unwrap()),
            Outcome::Failed
        );
        assert_eq!(
            outcome(room.client().call(&wait_request("../x", None)).unwrap()),
            Outcome::Failed
        );
    }

    #[test]
    fn stopping_ends_a_wait_that_would_last() {
        let room = Room::new();
        let mut stream = room.raw();
        writeln!(
            stream,
            "{}",
            serde_json::to_string(&wait_request("x", None)).unwrap()
        )
        .unwrap();
        while !room.fake.looked.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        room.server.stop();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("stopping"), "{text}");
    }

    /// An hour's look: the test would not end if the rest did not.
    #[test]
    fn a_rest_ends_with_the_deadline_the_hang_up_and_the_daemon() {
        let cost = Duration::from_secs(3600);
        let (here, there) = UnixStream::pair().unwrap();
        let (goes_on, stops) = (AtomicBool::new(false), AtomicBool::new(true));
        rest(cost, Some(Instant::now()), (&here, &goes_on));
        rest(cost, None, (&here, &stops));
        drop(there);
        rest(cost, None, (&here, &goes_on));
    }

    #[test]
    fn an_unknown_request_is_answered_and_an_endless_one_cut_off() {
        let room = Room::new();
        let mut stream = room.raw();
        stream.write_all(b"{\"ask\":\"sing\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("unknown request"), "{line}");
        let endless = vec![b' '; MAX_REQUEST as usize];
        stream.write_all(&endless).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("too long"), "{rest}");
    }

    #[test]
    fn connections_are_bounded() {
        let room = Room::new();
        let held: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| room.raw()).collect();
        let mut text = String::new();
        room.raw().read_to_string(&mut text).unwrap();
        assert!(text.contains("too many"), "{text}");
        drop(held);
    }
}
