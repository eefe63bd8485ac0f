//! Strangers: whoever reaches our port without the group key costs members nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

/// Opens connections to `to` as fast as they are made, and says nothing on any, until told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn on(to: PeerId, at: std::net::SocketAddr, from: &str) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let listen = vec![format!("{from}:0").parse().unwrap()];
        let (end, count): (_, Arc<AtomicUsize>) = (stop.clone(), Arc::clone(&opened));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let stranger = Identity::generate();
                let endpoint = endpoint::bind(&stranger, &listen, &[]).await.unwrap();
                let mut held = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    let conn = endpoint::connect(&endpoint, to, &[at], CTL_ALPN).await;
                    held.extend(conn);
                    count.fetch_add(1, Ordering::Relaxed);
                    held.drain(..held.len().saturating_sub(500));
                }
                endpoint.close().await;
            });
        });
        Self {
            stop,
            opened,
            thread: Some(thread),
        }
    }

    /// Waits until `many` more were opened.
    fn wait(&self, many: usize) {
        let until = self.opened.load(Ordering::Relaxed) + many;
        eventually("a flood", || self.opened.load(Ordering::Relaxed) >= until);
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A stranger with all places before the door kept a newcomer out for as long as it liked.
#[test]
fn a_newcomer_gets_in_while_strangers_flood_the_door_from_its_own_address_and_others() {
    let group = GroupKey::generate();
    let alder = Real::new();
    let a = start(&alder, config("alder", &group));
    let at = a.listen_addrs()[0];
    let floods = ["127.0.0.1", "127.0.0.2"].map(|from| Flood::on(alder.id(), at, from));
    floods.iter().for_each(|flood| flood.wait(100));
    let birch = Real::new();
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("birch", &group)
    };
    let b = start(&birch, invited);
    eventually("connected in spite of them", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
    alder.send("large", &pattern(1 << 20), &[birch.id()]);
    assert!(birch.wait_inbox("large") == pattern(1 << 20));
    floods.iter().for_each(|flood| flood.wait(20));
    assert!(connected(&a, birch.id()), "and stays");
}
