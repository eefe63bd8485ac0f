//! The keeper: accepts on the endpoint, and builds it again whenever it has ended, until the mesh stops.

use std::sync::Arc;
use std::time::Duration;

use iroh::Endpoint;
use tokio::time::{Instant, sleep, timeout};

use crate::delivery::jittered;
use crate::mesh::endpoint::STOP;
use crate::mesh::hub::Hub;
use crate::mesh::link;
use crate::mesh::member::CloseCode;

/// First and longest pause before the endpoint is built again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// An endpoint that lasted less does not reset the pause.
const LASTED: Duration = Duration::from_secs(30);

/// Accepts on the endpoint, and builds it again whenever it has ended, until the mesh stops.
pub(super) async fn keep(hub: Arc<Hub>) {
    let mut seed = u64::from_le_bytes(crate::peer::random()) | 1;
    let mut pause = AGAIN.0;
    hub.opened().await;
    loop {
        if let Some(endpoint) = hub.net.endpoint() {
            let begun = Instant::now();
            tokio::select! {
                () = link::accept(&hub, &endpoint) => {
                    if !hub.is_stopping() {
                        tracing::warn!("the network endpoint has ended; it is built again");
                    }
                }
                () = hub.net.wait_for_addresses() => {}
            }
            if hub.is_stopping() {
                return;
            }
            if begun.elapsed() > LASTED {
                pause = AGAIN.0;
            }
            let_go(&hub, endpoint).await;
        }
        sleep(jittered(pause, &mut seed)).await;
        pause = (pause * 2).min(AGAIN.1);
        if hub.is_stopping() {
            return;
        }
        let remembered = hub.store.group.remembered_listen();
        if hub.net.bind_again(hub.store.identity(), &remembered).await {
            let peers = hub.roster.all();
            peers.iter().for_each(|peer| peer.wake.notify_one());
        }
    }
}

/// Lets go of an endpoint and all its connections, so that its ports are free.
async fn let_go(hub: &Hub, endpoint: Endpoint) {
    hub.net.forget();
    let closed = CloseCode::Stopping.code();
    for (_, session) in hub.roster.sessions() {
        session.conn.close(closed, b"the network changed");
    }
    for peer in hub.roster.all() {
        if let Some(bulk) = peer.bulk.borrow().as_ref() {
            bulk.close(closed, b"the network changed");
        }
    }
    drop(timeout(STOP, endpoint.close()).await);
}
