//! The daemon: the one place that knows all layers. Starts them from the bottom, stops them from the top.
//!
//! ```text
//! checks → state directory → log → keys → spool → mesh → fs → mount → serve → control socket → ready
//! ```
//!
//! SIGHUP has it read its configuration again, SIGUSR1 log its state. It ends when a stop signal comes, when the control socket is told so, or when the mount is gone because somebody
//! unmounted it; all are the same clean end. A connection that was aborted is the same end with an error. An error on the way up goes back the same way down: [`House`] is dropped.
//!
//! # Invariants
//! 1. When [`run`] returns, nothing is mounted and the lock of the state is free.
//! 2. "ready" is said when the mount serves, the endpoint is bound and the control socket answers, not before. Nor does
//!    anybody else hear of us before that.
//!
//! # Crash behaviour
//! Killed, the mount stays and fails with ENOTCONN until the next start takes it away; the spool recovers by itself.
//!
//! # Threads
//! The caller's thread waits for the end. One more waits for the FUSE loops. The layers own the rest: FUSE loops (local
//! disk only, they never wait for a peer), sealers and the journal writer (`spool`), the timer (`fs`), one tokio runtime
//! (`mesh`), the control socket's threads, and one for signals. Every one is joined by its owner.

mod act;
mod arrival;
mod backend;
mod facts;
mod founding;
mod group;
mod herald;
pub(crate) mod keys;
pub(crate) mod logging;
mod occupied;
mod reload;
mod report;
mod traces;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub(crate) use self::arrival::Ready;
use self::backend::Backend;
use self::facts::Facts;
use self::herald::MountHerald;
use self::logging::Sink;
pub(crate) use self::reload::Again;
use self::reload::Settings;
use self::traces::Traces;
use crate::config::{Config, Held};
use crate::control::{ControlBackend, Server};
use crate::fs::Fs;
use crate::mesh::{Asked, Mesh, MeshConfig};
use crate::mount::signals::{Blocked, Order};
use crate::mount::sys::{MountRequest, Mounted};
use crate::mount::{allocator, background, prepare, signals, sys};
use crate::spool::{Layout, Spool, StateLock, make_state_directory};

/// What to start.
pub(crate) struct Start {
    /// The settings that hold.
    pub config: Config,
    /// The same, each with its name.
    pub held: Vec<Held>,
    /// Finds out what is to hold from now on.
    pub again: Again,
    /// Where to mount, absolute.
    pub mountpoint: PathBuf,
    /// The mountpoint as the user called it.
    pub shown: PathBuf,
    /// The source that findmnt shows.
    pub fs_name: OsString,
    /// Refuse every change through the mount.
    pub read_only: bool,
    /// Refuse to run programs.
    pub no_exec: bool,
    /// Keep access times.
    pub no_atime: bool,
    /// Whether a parent waits for us; then the terminal is not ours.
    pub background: bool,
}

/// What the daemon is waiting for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    /// It is to end, by a signal or the control socket.
    End,
    /// The FUSE loops have ended: somebody unmounted it.
    Unmounted,
    /// It is to read its configuration again.
    Reload,
    /// It is to log its state.
    Report,
}

/// News on their way: ends, of which the first is enough, and at most [`REQUESTS`] others.
const NEWS: usize = 8;

/// Requests on their way that are no ends. Further ones are dropped: somebody who sends signals without a pause must not be
/// able to crowd out the end.
const REQUESTS: usize = 4;

/// FUSE loops. Requests are short and local; more loops than this only contend for the same locks.
const MOST_LOOPS: usize = 4;

/// What is said when the kernel has ended the connection though nobody unmounted.
const ABORTED: &str = "the mount's connection was aborted, by /sys/fs/fuse/connections or `umount -f`; start it again";

/// How long programs may keep files open in a mount that is being stopped. After that they see errors, as after a kill.
const LAST_USERS: Duration = Duration::from_secs(8);

/// Runs the daemon until its end. `ready` is called once, when everything serves, with what to print; an error of it
/// ends the daemon.
pub(crate) fn run(
    start: Start,
    blocked: &Blocked,
    ready: impl FnOnce(&Ready) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    allocator::use_one_arena();
    let (end, ended) = sync_channel(NEWS);
    let mut house = House::default();
    let begun = Instant::now();
    let said = house.open(start, blocked, &end)?;
    background::leave_working_directory().context("cannot leave the working directory")?;
    background::notify_ready(said.text.lines().next().unwrap_or_default());
    ready(&said).context("whoever started the daemon has gone")?;
    let aborted = house.wait(&ended, begun);
    background::notify_stopping();
    drop(house);
    tracing::info!("stopped");
    if aborted {
        bail!("{ABORTED}");
    }
    Ok(())
}

/// What [`House::build`] made.
struct Built {
    spool: Arc<Spool>,
    backend: Arc<Backend>,
    /// What whoever made the ticket answered when the group was entered.
    asked: Option<Asked>,
}

/// What has been started, to be stopped in reverse.
#[derive(Default)]
struct House {
    spool: Option<Arc<Spool>>,
    backend: Option<Arc<Backend>>,
    fs: Option<Arc<Fs>>,
    mounted: Option<Mounted>,
    /// Joins the FUSE loops.
    serving: Option<std::thread::JoinHandle<()>>,
    control: Option<Server>,
    settings: Option<Settings>,
    /// Requests that are on their way.
    requests: Arc<AtomicUsize>,
    watch: Option<signals::Watch>,
}

impl House {
    /// Starts everything; gives what to print.
    fn open(
        &mut self,
        start: Start,
        blocked: &Blocked,
        end: &SyncSender<News>,
    ) -> anyhow::Result<Ready> {
        let prepared = prepare::prepare(&start.mountpoint, &start.config.state)?;
        let mut config = start.config;
        config.state = prepared.state;
        let layout = Layout::new(config.state.clone());
        let mut traces = Traces::of(prepared.made, &layout);
        founding::check(&layout, &config)?;
        traces.made(make_state_directory(&layout)?);
        logging::start(&Sink::choose(!start.background, layout.log()), &config.log)
            .with_context(|| format!("cannot open the log in {}", config.state.display()))?;
        if prepared.recovered > 0 {
            tracing::warn!(
                "took away {} dead mount(s) at {}",
                prepared.recovered,
                prepared.mountpoint.display()
            );
        }
        if let Err(err) = signals::raise_open_files() {
            tracing::warn!("cannot raise the limit of open files: {err}");
        }
        self.watch = Some(self.listen(blocked, !start.background, end)?);

        let lock = occupied::lock(&layout)?;
        // Refused, it leaves nothing; that must be gone before the lock is.
        let keys = group::keys(&layout, &mut config).inspect_err(|_| traces.take_away())?;
        traces.stay();
        let (made, proved, mut asked) = (keys.made, keys.proved(), keys.asked.clone());
        let request = MountRequest {
            allow_other: config.allow_other,
            read_only: start.read_only,
            no_exec: start.no_exec,
            no_atime: start.no_atime,
            ..MountRequest::new(prepared.mountpoint, start.fs_name)
        };
        let id = keys.identity.id();
        let built = self
            .build(&config, keys, lock, &request, end)
            .and_then(|built| self.serve(&request, end).map(|()| built))
            .and_then(|built| {
                built.spool.group.keep(&config.keep)?;
                if proved {
                    built.spool.group.bind()?;
                }
                Ok(built)
            })
            .inspect_err(|_| self.give_up(&layout, made))?;
        let backend = built.backend;
        // The first that others hear of this start.
        backend.open_mesh();
        self.settings = Some(Settings::new(start.held, config.clone(), start.again));

        asked = asked.or(built.asked);
        let (asked, ticket) = (asked.as_ref(), config.ticket.as_ref());
        let said = arrival::ready(&start.shown, backend.facts(), &backend, asked, ticket);
        for warning in &said.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!(
            "ready: {} as {} ({id})",
            request.mountpoint.display(),
            config.name
        );
        Ok(said)
    }

    /// Turns signals into news.
    fn listen(
        &self,
        blocked: &Blocked,
        foreground: bool,
        news: &SyncSender<News>,
    ) -> std::io::Result<signals::Watch> {
        let (news, requests) = (news.clone(), Arc::clone(&self.requests));
        blocked.watch(foreground, move |signal| {
            let request = match signal {
                Order::Reload => News::Reload,
                Order::Report => News::Report,
                Order::Terminate | Order::Interrupt | Order::HangUp => {
                    tracing::info!("stopping: {signal:?}");
                    // Full means that an end is on its way already.
                    let _full = news.try_send(News::End);
                    return;
                }
            };
            let many = requests.fetch_add(1, Ordering::AcqRel) >= REQUESTS;
            if many || news.try_send(request).is_err() {
                requests.fetch_sub(1, Ordering::AcqRel);
            }
        })
    }

    /// Starts the layers below the mount.
    fn build(
        &mut self,
        config: &Config,
        keys: group::Keys,
        lock: StateLock,
        request: &MountRequest,
        end: &SyncSender<News>,
    ) -> anyhow::Result<Built> {
        let id = keys.identity.id();
        let spool = Spool::open_locked(config.spool(keys.identity), lock)?;
        spool.custodian.set_late_joiners(config.late_joiners);
        spool.set_routing(config.routing.clone())?;
        self.spool = Some(Arc::clone(&spool));
        let asked = group::enter(&spool, keys.group, keys.made, config)?;
        let mesh = MeshConfig {
            wait_for_addresses: background::is_started_by_system(),
            ..config.mesh()
        };
        let mesh = Mesh::bind(Arc::clone(&spool), mesh)?;
        let stop = end.clone();
        let backend = Arc::new(Backend::new(Facts {
            id,
            name: config.name.clone(),
            mountpoint: request.mountpoint.clone(),
            spool: Arc::clone(&spool),
            stop: Box::new(move || {
                let _full = stop.try_send(News::End);
            }),
        }));
        backend.set_mesh(mesh);
        self.backend = Some(Arc::clone(&backend));
        let fs = Fs::new(Arc::clone(&spool), config.fs(), Arc::clone(&backend) as _)
            .context("cannot start the file system")?;
        backend.set_fs(&fs);
        self.fs = Some(fs);
        Ok(Built {
            spool,
            backend,
            asked,
        })
    }

    /// Mounts what [`Self::build`] made, and serves it.
    fn serve(&mut self, request: &MountRequest, end: &SyncSender<News>) -> anyhow::Result<()> {
        let (Some(fs), Some(backend), Some(spool)) = (&self.fs, &self.backend, &self.spool) else {
            bail!("nothing was built");
        };
        let (mounted, fuse) = sys::mount(request)?;
        backend.set_device(mounted.place().device);
        let herald = MountHerald::new(mounted.place(), request.allow_other);
        self.mounted = Some(mounted);
        let loops = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .clamp(2, MOST_LOOPS);
        let serving = crate::fuse::serve(Arc::clone(fs), fuse, loops, request.allow_other)
            .context("cannot serve the mount")?;
        fs.set_herald(Box::new(herald))
            .context("cannot start announcing arrivals")?;
        let gone = end.clone();
        self.serving = Some(
            std::thread::Builder::new()
                .name("fuse-waiter".to_owned())
                .spawn(move || {
                    if let Err(err) = serving.join() {
                        tracing::error!("the FUSE session ended with an error: {err}");
                    }
                    let _full = gone.try_send(News::Unmounted);
                })?,
        );
        let socket = spool.layout().control_socket();
        self.control = Some(Server::start(&socket, Arc::clone(backend) as _)?);
        Ok(())
    }

    /// The start has failed: nothing of the group that it brought into the state stays.
    fn give_up(&self, layout: &Layout, made: group::Made) {
        if let Some(mesh) = self
            .backend
            .as_ref()
            .and_then(|backend| backend.take_mesh())
        {
            mesh.stop();
        }
        group::give_up(layout, self.spool.as_deref(), made);
    }

    /// Waits for the end, and when it was asked for, detaches the mount and waits for its last users. Says whether the
    /// connection ended without an unmount.
    fn wait(&mut self, ended: &Receiver<News>, begun: Instant) -> bool {
        if self.next_end(ended, begun) == Some(News::Unmounted) {
            let left = self.mounted.as_ref().map(Mounted::is_in_place);
            if let Some(Ok(true)) = left {
                tracing::error!("stopping: {ABORTED}");
                return true;
            }
            tracing::info!("stopping: unmounted");
            self.release_all();
            return false;
        }
        if let Some(backend) = &self.backend {
            backend.set_ending();
        }
        self.stop_announcing();
        self.unmount();
        loop {
            match ended.recv_timeout(LAST_USERS) {
                Ok(News::Unmounted) => {
                    self.release_all();
                    return false;
                }
                Ok(News::End | News::Reload | News::Report) => {}
                Err(_) => {
                    tracing::warn!("files are still open in the mount; ending all the same");
                    return false;
                }
            }
        }
    }

    /// The next news that is an end. Answers what else is asked, and tells systemd that we live: each time, all layers have
    /// just shown that they do.
    fn next_end(&mut self, news: &Receiver<News>, begun: Instant) -> Option<News> {
        // Twice as often as systemd wants it.
        let pause = background::watchdog().map(|most| most / 2);
        loop {
            let next = match pause {
                Some(pause) => news.recv_timeout(pause),
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(end @ (News::End | News::Unmounted)) => return Some(end),
                Ok(request) => {
                    self.requests.fetch_sub(1, Ordering::AcqRel);
                    self.answer(request, begun);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The senders live as long as the house, so the channel is never closed here.
                Err(RecvTimeoutError::Disconnected) => return None,
            }
            if pause.is_some() && self.is_alive() {
                background::notify_alive();
            }
        }
    }

    fn answer(&mut self, request: News, begun: Instant) {
        let (Some(settings), Some(spool), Some(fs), Some(backend)) =
            (&mut self.settings, &self.spool, &self.fs, &self.backend)
        else {
            return;
        };
        if request == News::Reload {
            settings.reload(spool, fs);
            return;
        }
        let status = ControlBackend::status(&**backend, None, 0);
        for line in report::lines(&status, begun.elapsed()) {
            tracing::info!("{line}");
        }
    }

    /// Comes back when every layer has let go of its locks for a moment: the names of the outbox, the decisions of the spool,
    /// what the mesh knows. One that never does keeps us here, and systemd starts the daemon anew.
    fn is_alive(&self) -> bool {
        let (Some(spool), Some(fs), Some(backend)) = (&self.spool, &self.fs, &self.backend) else {
            return false;
        };
        fs.pass_through();
        spool.pass_through();
        ControlBackend::peers(&**backend);
        true
    }

    /// Only when the kernel has ended the mount of its own accord: then nobody has a file open.
    fn release_all(&self) {
        if let Some(fs) = &self.fs {
            fs.release_all();
        }
    }

    fn stop_announcing(&self) {
        if let Some(fs) = &self.fs {
            fs.stop_announcing();
        }
    }

    fn unmount(&self) {
        if let Some(Err(err)) = self.mounted.as_ref().map(Mounted::unmount) {
            tracing::error!("{err}");
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // First, since a command may wait for it.
        if let Some(spool) = &self.spool {
            spool.outbox.end_large_hashing();
        }
        drop(self.control.take());
        self.stop_announcing();
        self.unmount();
        drop(self.mounted.take());
        if let Some(fs) = self.fs.take() {
            fs.stop();
        }
        if let Some(mesh) = self
            .backend
            .as_ref()
            .and_then(|backend| backend.take_mesh())
        {
            mesh.stop();
        }
        if let Some(spool) = self.spool.take() {
            spool.close();
        }
        // A loop that still serves a last user ends with the process.
        if let Some(serving) = self
            .serving
            .take()
            .filter(std::thread::JoinHandle::is_finished)
            && serving.join().is_err()
        {
            tracing::error!("the thread that waits for the FUSE loops panicked");
        }
        drop(self.watch.take());
    }
}
