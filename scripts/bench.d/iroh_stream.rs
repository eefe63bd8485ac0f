//! Files over one bare iroh stream, for `scripts/bench`: what the transport costs without anything of Meshbox.
//!
//! ```text
//! iroh_stream receive DIR              prints `ID@ADDR:PORT`, then writes what comes below DIR
//! iroh_stream send DIR ID@ADDR:PORT…   reads names from standard input, one a line, and sends each file or tree to all
//! ```
//!
//! A file is its header (length of the path in 2 bytes, size in 8, little-endian; the path), its bytes and their SHA-256.
//! The receiver renames it into place when the digest is right. `tcp.py` speaks the same over TCP. No resuming, no
//! receipts, no syncing. A thread of its own reads and hashes, another hashes and writes; between each and the connection
//! is a short queue.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{PortmapperConfig, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, TransportAddr};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

const ALPN: &[u8] = b"bench/stream";
/// Bytes read at once, and collected from small files before they go.
const PIECE: usize = 256 << 10;
/// Pieces in a queue.
const QUEUE: usize = 16;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["receive", dir] => runtime.block_on(receive(dir.into())),
        ["send", dir, ref peers @ ..] if !peers.is_empty() => {
            runtime.block_on(send(dir.into(), peers))
        }
        _ => bail!("usage: iroh_stream receive DIR | send DIR ID@ADDR:PORT…"),
    }
}

/// An endpoint on loopback that asks nobody for anything.
async fn endpoint() -> Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")?;
    Ok(builder.bind().await?)
}

async fn receive(dir: PathBuf) -> Result<()> {
    let endpoint = endpoint().await?;
    let bound = endpoint.bound_sockets();
    println!("{}@{}", endpoint.id(), bound.first().context("not bound")?);
    let conn = endpoint.accept().await.context("closed")?.await?;
    let mut stream = conn.accept_uni().await?;
    let (queue, pieces) = mpsc::channel(QUEUE);
    let writer = std::thread::spawn(move || write_files(&dir, Pieces::new(pieces)));
    while let Some(chunk) = stream.read_chunk(PIECE).await? {
        if queue.send(chunk).await.is_err() {
            break;
        }
    }
    drop(queue);
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))?
}

async fn send(dir: PathBuf, peers: &[&str]) -> Result<()> {
    let endpoint = endpoint().await?;
    let mut queues = Vec::new();
    let mut senders = tokio::task::JoinSet::new();
    for peer in peers {
        let (id, addr) = peer.split_once('@').context("not ID@ADDR:PORT")?;
        let addrs = BTreeSet::from([TransportAddr::Ip(addr.parse()?)]);
        let peer = EndpointAddr::from_parts(id.parse::<EndpointId>()?, addrs);
        let conn = endpoint.connect(peer, ALPN).await?;
        let mut stream = conn.open_uni().await?;
        let (queue, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
        queues.push(queue);
        senders.spawn(async move {
            while let Some(piece) = pieces.recv().await {
                stream.write_chunk(piece).await?;
            }
            stream.finish()?;
            // Whoever closes the connection earlier takes away what is still on its way.
            stream.stopped().await?;
            drop(conn);
            anyhow::Ok(())
        });
    }
    println!("connected");
    let reader = std::thread::spawn(move || read_files(&dir, queues));
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?
}

/// Sends what standard input names, until its end.
fn read_files(dir: &Path, queues: Vec<mpsc::Sender<Bytes>>) -> Result<()> {
    let mut out = Out {
        queues,
        small: BytesMut::with_capacity(PIECE),
    };
    for name in io::stdin().lock().lines() {
        read_tree(dir, Path::new(&name?), &mut out)?;
        out.flush()?;
    }
    Ok(())
}

fn read_tree(dir: &Path, path: &Path, out: &mut Out) -> Result<()> {
    let full = dir.join(path);
    if !full.is_dir() {
        return read_file(&full, path, out);
    }
    for entry in fs::read_dir(&full)? {
        read_tree(dir, &path.join(entry?.file_name()), out)?;
    }
    Ok(())
}

fn read_file(full: &Path, path: &Path, out: &mut Out) -> Result<()> {
    let mut file = File::open(full)?;
    let size = file.metadata()?.len();
    let name = path.to_str().context("not UTF-8")?.as_bytes();
    out.put(&u16::try_from(name.len())?.to_le_bytes())?;
    out.put(&size.to_le_bytes())?;
    out.put(name)?;
    let mut hash = Sha256::new();
    let mut left = size;
    while left > 0 {
        let piece = out.read(&mut file, left)?;
        hash.update(&piece);
        left -= piece.len() as u64;
        out.pass(piece)?;
    }
    out.put(&hash.finalize())
}

/// The pieces on their way to every peer.
struct Out {
    queues: Vec<mpsc::Sender<Bytes>>,
    /// Not sent yet; more may come.
    small: BytesMut,
}

impl Out {
    /// Adds a few bytes.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.small.extend_from_slice(bytes);
        if self.small.len() < PIECE {
            return Ok(());
        }
        self.flush()
    }

    /// Reads the next bytes of a file, at least one.
    fn read(&self, file: &mut File, left: u64) -> Result<Bytes> {
        let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let mut piece = BytesMut::zeroed(most);
        let got = file.read(&mut piece)?;
        ensure!(got > 0, "a file became shorter");
        piece.truncate(got);
        Ok(piece.freeze())
    }

    /// Adds bytes of a file, without a copy if they are many.
    fn pass(&mut self, piece: Bytes) -> Result<()> {
        if piece.len() < PIECE / 4 {
            return self.put(&piece);
        }
        self.flush()?;
        self.give(&piece)
    }

    fn flush(&mut self) -> Result<()> {
        let piece = self.small.split().freeze();
        self.small.reserve(PIECE);
        if piece.is_empty() {
            return Ok(());
        }
        self.give(&piece)
    }

    fn give(&self, piece: &Bytes) -> Result<()> {
        for queue in &self.queues {
            queue
                .blocking_send(piece.clone())
                .context("a peer is gone")?;
        }
        Ok(())
    }
}

/// Writes what comes below `dir`, until the end of the stream.
fn write_files(dir: &Path, mut from: Pieces) -> Result<()> {
    let part = dir.join(".part");
    let mut known = PathBuf::new();
    loop {
        let mut head = [0; 10];
        if from.read(&mut head[..1])? == 0 {
            return Ok(());
        }
        from.read_exact(&mut head[1..])?;
        let [a, b, size @ ..] = head;
        let mut name = vec![0; usize::from(u16::from_le_bytes([a, b]))];
        from.read_exact(&mut name)?;
        let target = dir.join(String::from_utf8(name)?);
        let parent = target.parent().context("no directory")?;
        if parent != known {
            fs::create_dir_all(parent)?;
            known = parent.to_owned();
        }
        let mut file = File::create(&part)?;
        let (mut hash, mut left) = (Sha256::new(), u64::from_le_bytes(size));
        while left > 0 {
            let piece = from.next(left)?;
            hash.update(&piece);
            file.write_all(&piece)?;
            left -= piece.len() as u64;
        }
        let mut digest = [0; 32];
        from.read_exact(&mut digest)?;
        ensure!(
            hash.finalize()[..] == digest,
            "wrong bytes: {}",
            target.display()
        );
        fs::rename(&part, &target)?;
    }
}

/// What has come, as a stream of bytes.
struct Pieces {
    queue: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Pieces {
    fn new(queue: mpsc::Receiver<Bytes>) -> Self {
        Self {
            queue,
            current: Bytes::new(),
        }
    }

    /// Waits for bytes; `false` at the end.
    fn fill(&mut self) -> bool {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return false,
            }
        }
        true
    }

    /// The next bytes, at most `left`, without a copy.
    fn next(&mut self, left: u64) -> Result<Bytes> {
        ensure!(self.fill(), "cut short");
        let most = self.current.len();
        let most = usize::try_from(left).map_or(most, |left| left.min(most));
        Ok(self.current.split_to(most))
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || !self.fill() {
            return Ok(0);
        }
        let most = into.len().min(self.current.len());
        into[..most].copy_from_slice(&self.current.split_to(most));
        Ok(most)
    }
}
