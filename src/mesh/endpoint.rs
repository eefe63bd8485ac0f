//! The iroh endpoint: bound to the addresses asked for, without relay, port mapping, DNS or any look-up service.
//!
//! A peer is dialled at addresses we know, or not at all. Times are chosen so that a dead connection is noticed within
//! ten seconds: [`IDLE`] counts from the first packet sent after the last one received, which [`KEEP_ALIVE`] makes at
//! most two seconds later, so nine seconds in all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{
    Accepting, BindOpts, Builder, ConnectOptions, Connection, ConnectionError, IdleTimeout,
    Incoming, PortmapperConfig, QuicTransportConfig, VarInt, presets,
};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, RelayUrl, SecretKey, TransportAddr};
use tokio::time::timeout;

use crate::mesh::congestion::{self, Controller};
use crate::mesh::error::MeshError;
use crate::mesh::member::{MemberError, why_closed};
use crate::mesh::windows;
use crate::mesh::wire::{BULK_ALPN, CTL_ALPN, JOIN_ALPN};
use crate::peer::{Identity, PeerId};

/// Silence after which a connection is dead.
const IDLE: Duration = Duration::from_secs(7);

/// How often a packet is sent on a quiet connection: three may be lost before it is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Time for one attempt to connect; QUIC's own would be 30 s.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);

/// How long peers may take to hear that we end: milliseconds when they live, more only where one is silent.
pub(super) const STOP: Duration = Duration::from_secs(1);

/// Addresses tried at once: all that a peer says of itself, and as many found, configured and told.
const RACED: usize = 48;

/// What a connection is made with: the controller, and how much may be unacknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct With {
    pub controller: Controller,
    pub unacknowledged: u64,
}

/// The endpoint's own.
const PLAIN: With = With {
    controller: Controller::Cubic,
    unacknowledged: 4 * 1024 * 1024,
};

/// What is bound when no address is given. Where there is no IPv6, IPv4 alone will do.
const EVERYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];

/// Binds the endpoint to `listen`; empty: to all interfaces. An address with port 0 takes the port in `remembered` for
/// it, so that members that know us find us again after a restart; when that is in use, any free one.
pub(super) async fn bind_again(
    identity: &Identity,
    listen: &[SocketAddr],
    remembered: &[SocketAddr],
    relays: &[RelayUrl],
) -> Result<Endpoint, MeshError> {
    let again = with_ports(listen, remembered, |addr| UdpSocket::bind(addr).is_ok());
    if again.as_slice() != listen {
        // Somebody can still take a port between the look and the binding.
        match bind(identity, &again, relays).await {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => tracing::info!("not on the ports of the last start: {error}"),
        }
    }
    bind(identity, listen, relays).await
}

/// `listen` with ports from `remembered` where it leaves them open and `is_free` says so.
fn with_ports(
    listen: &[SocketAddr],
    remembered: &[SocketAddr],
    is_free: impl Fn(SocketAddr) -> bool,
) -> Vec<SocketAddr> {
    let wanted = if listen.is_empty() {
        EVERYWHERE.as_slice()
    } else {
        listen
    };
    let mut unused = remembered.to_vec();
    let mut ports = Vec::with_capacity(wanted.len());
    for addr in wanted {
        let port = unused
            .iter()
            .position(|known| addr.port() == 0 && known.ip() == addr.ip())
            .map(|at| unused.swap_remove(at))
            .filter(|known| is_free(*known));
        ports.push(port.unwrap_or(*addr));
    }
    if ports.as_slice() == EVERYWHERE {
        return listen.to_vec();
    }
    ports
}

/// Binds the endpoint.
pub(super) async fn bind(
    identity: &Identity,
    listen: &[SocketAddr],
    relays: &[RelayUrl],
) -> Result<Endpoint, MeshError> {
    let shown = || {
        listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let failed = |why: String| {
        let what = if listen.is_empty() {
            "any address".to_owned()
        } else {
            shown()
        };
        MeshError::Bind(what, why)
    };
    let mut builder: Builder = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&identity.secret()))
        .alpns(alpns())
        .relay_mode(match relays {
            [] => RelayMode::Disabled,
            [..] => RelayMode::Custom(relays.iter().cloned().collect()),
        })
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .transport_config(transport(PLAIN));
    if !listen.is_empty() {
        builder = builder.clear_ip_transports();
        for (addr, opts) in in_order(listen) {
            let bound = builder.bind_addr_with_opts(addr, opts);
            builder = bound.map_err(|e| failed(e.to_string()))?;
        }
    }
    builder.bind().await.map_err(|e| failed(chain(&e)))
}

/// How each address is bound. One of a family is the way out for everything; the others serve their own network. iroh
/// wants the first kind after the second.
fn in_order(listen: &[SocketAddr]) -> Vec<(SocketAddr, BindOpts)> {
    let mut all = Vec::new();
    for v4 in [true, false] {
        let family: Vec<SocketAddr> = listen
            .iter()
            .copied()
            .filter(|a| a.is_ipv4() == v4)
            .collect();
        let rank = |addr: &SocketAddr| (!addr.ip().is_unspecified(), addr.ip().is_loopback());
        let Some(way_out) = (0..family.len()).min_by_key(|index| rank(&family[*index])) else {
            continue;
        };
        for (index, addr) in family.iter().enumerate() {
            if index != way_out {
                let prefix = if v4 { 24 } else { 64 };
                let opts = BindOpts::default().set_prefix_len(prefix);
                all.push((*addr, opts.set_is_default_route(false)));
            }
        }
        // Where there is no IPv6, IPv4 alone will do.
        let addr = family[way_out];
        let required = addr.ip() != EVERYWHERE[1].ip() || family.len() == listen.len();
        all.push((addr, BindOpts::default().set_is_required(required)));
    }
    all
}

/// Reads the addresses of relays.
pub(super) fn parse_relays(urls: &[String]) -> Result<Vec<RelayUrl>, MeshError> {
    let parse = |url: &String| url.parse().map_err(|_| MeshError::Relay(url.clone()));
    urls.iter().map(parse).collect()
}

/// The protocols we accept.
fn alpns() -> Vec<Vec<u8>> {
    [CTL_ALPN, BULK_ALPN, JOIN_ALPN].map(<[u8]>::to_vec).into()
}

/// The transport of a connection before the proof; the endpoint's own is for [`PLAIN`].
fn transport(with: With) -> QuicTransportConfig {
    let mut config = QuicTransportConfig::builder()
        .receive_window(VarInt::from_u32(windows::BEFORE_PROOF))
        .send_window(with.unacknowledged)
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .default_path_max_idle_timeout(IDLE)
        .max_concurrent_bidi_streams(VarInt::from_u32(windows::STREAMS_BEFORE_PROOF))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    if let Ok(idle) = IdleTimeout::try_from(IDLE) {
        config = config.max_idle_timeout(Some(idle));
    }
    if with.controller == Controller::Bbr3
        && let Some(factory) = congestion::bbr3()
    {
        config = config.congestion_controller_factory(factory);
    }
    config.build()
}

/// Accepts a connection.
pub(super) fn accept(
    endpoint: &Endpoint,
    incoming: Incoming,
    with: With,
) -> Result<Accepting, ConnectionError> {
    if with == PLAIN {
        return incoming.accept();
    }
    let config = endpoint
        .create_server_config_builder(alpns())
        .set_transport_config(transport(with))
        .build();
    incoming.accept_with(Arc::new(config))
}

/// The addresses bound, as others can dial them.
pub(super) fn listen_addrs(endpoint: &Endpoint) -> Vec<SocketAddr> {
    let interfaces: Vec<SocketAddr> = endpoint.addr().ip_addrs().copied().collect();
    dialable(&endpoint.bound_sockets(), &interfaces)
}

/// What to tell others for `bound` sockets on a machine with these interface addresses (as iroh lists them, with port).
fn dialable(bound: &[SocketAddr], interfaces: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addrs: Vec<SocketAddr> = bound
        .iter()
        .copied()
        .filter(|a| !a.ip().is_unspecified())
        .collect();
    let unspecified: Vec<&SocketAddr> = bound.iter().filter(|a| a.ip().is_unspecified()).collect();
    for addr in interfaces {
        let ours = unspecified
            .iter()
            .any(|u| u.is_ipv4() == addr.is_ipv4() && u.port() == addr.port());
        if ours && !addr.ip().is_loopback() && !is_link_local(addr.ip()) && !addrs.contains(addr) {
            addrs.push(*addr);
        }
    }
    if addrs.is_empty() {
        addrs = unspecified.iter().map(|u| loopback(u)).collect();
    }
    addrs.sort_unstable();
    addrs
}

fn loopback(addr: &SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) => (Ipv6Addr::LOCALHOST, v6.port()).into(),
    }
}

/// [`connect_as`] as the endpoint does by itself.
pub(super) async fn connect(
    endpoint: &Endpoint,
    peer: PeerId,
    addrs: &[SocketAddr],
    alpn: &[u8],
) -> Result<Connection, MemberError> {
    connect_as(endpoint, peer, addrs, &[], alpn, PLAIN).await
}

/// Connects to `peer` at any of `addrs`, or through one of `relays` (iroh races them), within [`DIAL_TIMEOUT`].
pub(super) async fn connect_as(
    endpoint: &Endpoint,
    peer: PeerId,
    addrs: &[SocketAddr],
    relays: &[RelayUrl],
    alpn: &[u8],
    with: With,
) -> Result<Connection, MemberError> {
    let id = EndpointId::from_bytes(peer.as_bytes())
        .map_err(|_| MemberError::Lost("its id is no key".into()))?;
    let dialable = addrs.iter().filter(|addr| !is_link_local(addr.ip()));
    let relayed = relays.iter().cloned().map(TransportAddr::Relay);
    let direct = dialable.take(RACED).map(|a| TransportAddr::Ip(*a));
    let addrs = direct.chain(relayed);
    let options = ConnectOptions::new().with_transport_config(transport(with));
    let attempt = async {
        let connecting = endpoint
            .connect_with_opts(EndpointAddr::from_parts(id, addrs), alpn, options)
            .await
            .map_err(|error| dial_error(&error))?;
        connecting.await.map_err(|error| dial_error(&error))
    };
    match timeout(DIAL_TIMEOUT, attempt).await {
        Ok(connected) => connected,
        Err(_) => Err(MemberError::Timeout),
    }
}

/// Where the peer of a connection that we dialled was reached, if others can use that address too.
pub(super) fn reached_at(conn: &Connection) -> Option<SocketAddr> {
    let paths = conn.paths();
    let path = paths.iter().find(|path| path.is_selected())?;
    let TransportAddr::Ip(addr) = path.remote_addr() else {
        return None;
    };
    (!is_link_local(addr.ip())).then_some(*addr)
}

/// Whether an address needs a scope. iroh 1.4.1 drops scopes; a packet sent there all the same fails with EINVAL, upon
/// which segmentation offload is switched off for the whole socket.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Why a connection could not be made. TLS tells "none of our protocols" by alert 120.
fn dial_error(error: &(dyn std::error::Error + 'static)) -> MemberError {
    let mut source = Some(error);
    while let Some(inner) = source {
        if let Some(reason) = inner.downcast_ref::<iroh::endpoint::ConnectionError>()
            && let Some(told) = why_closed(reason)
        {
            return told;
        }
        source = inner.source();
    }
    let text = chain(error);
    if text.contains("error 120") {
        MemberError::Protocol
    } else {
        MemberError::Lost(text)
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_bound_is_told_and_loopback_only_when_there_is_nothing_else() {
        let interfaces = addrs(&["127.0.0.1:7", "10.0.0.2:7", "[fe80::1]:8", "[fd00::1]:8"]);
        assert_eq!(
            dialable(&addrs(&["127.0.0.1:7"]), &interfaces),
            addrs(&["127.0.0.1:7"])
        );
        let any = addrs(&["0.0.0.0:7", "[::]:8"]);
        assert_eq!(
            dialable(&any, &interfaces),
            addrs(&["10.0.0.2:7", "[fd00::1]:8"])
        );
        assert_eq!(
            dialable(&any, &addrs(&["127.0.0.1:7"])),
            addrs(&["127.0.0.1:7", "[::1]:8"])
        );
    }

    #[test]
    fn open_ports_are_those_of_the_last_start_where_they_are_free() {
        let free = |_| true;
        let any = addrs(&["0.0.0.0:7", "[::]:8"]);
        assert_eq!(with_ports(&[], &any, free), any);
        assert_eq!(with_ports(&[], &any, |_| false), addrs(&[]));
        assert_eq!(with_ports(&[], &[], free), addrs(&[]));
        let v6_taken = with_ports(&[], &any, |addr| addr.is_ipv4());
        assert_eq!(v6_taken, addrs(&["0.0.0.0:7", "[::]:0"]));
        let loopback = addrs(&["127.0.0.1:0"]);
        assert_eq!(with_ports(&loopback, &any, free), loopback);
        let before = addrs(&["127.0.0.1:5", "127.0.0.1:6"]);
        let fixed = addrs(&["127.0.0.1:9"]);
        assert_eq!(with_ports(&fixed, &before, free), fixed);
        let two = addrs(&["127.0.0.1:0", "127.0.0.1:0"]);
        let ports = with_ports(&two, &before, free);
        assert!(ports.len() == 2 && ports.iter().all(|addr| before.contains(addr)));
        assert_ne!(ports[0], ports[1]);
    }

    #[tokio::test]
    async fn the_next_start_has_the_same_port_unless_it_is_in_use() {
        let listen = addrs(&["127.0.0.1:0"]);
        let identity = Identity::generate();
        let first = bind_again(&identity, &listen, &[], &[]).await.unwrap();
        let bound = first.bound_sockets();
        let second = bind_again(&identity, &listen, &bound, &[]).await.unwrap();
        assert_ne!(second.bound_sockets(), bound, "in use");
        first.close().await;
        drop(first);
        // Its socket goes with the last of its tasks.
        let freed = async {
            while UdpSocket::bind(bound[0]).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), freed).await.unwrap();
        let third = bind_again(&identity, &listen, &bound, &[]).await.unwrap();
        assert_eq!(third.bound_sockets(), bound);
        second.close().await;
        third.close().await;
    }

    #[tokio::test]
    async fn a_silent_address_costs_less_than_five_seconds_and_nothing_beside_a_good_one() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let dead = silent.local_addr().unwrap();
        let listen = addrs(&["127.0.0.1:0"]);
        let identities = [Identity::generate(), Identity::generate()];
        let here = bind(&identities[0], &listen, &[]).await.unwrap();
        let there = bind(&identities[1], &listen, &[]).await.unwrap();
        let accepting = tokio::spawn({
            let there = there.clone();
            async move { there.accept().await.unwrap().await.unwrap() }
        });
        let peer = identities[1].id();
        let both = [dead, there.bound_sockets()[0]];
        let begun = std::time::Instant::now();
        let conn = connect(&here, peer, &both, CTL_ALPN).await.unwrap();
        let good = begun.elapsed();
        drop((conn, accepting.await.unwrap()));
        there.close().await;
        let nobody = Identity::generate().id();
        let failed = connect(&here, nobody, &[dead], CTL_ALPN).await;
        // By that time limit and not by QUIC's own; how long it took here would depend on how busy the machine is.
        assert_eq!(failed.map(drop), Err(MemberError::Timeout));
        assert!(DIAL_TIMEOUT < Duration::from_secs(5));
        assert!(good < DIAL_TIMEOUT, "{good:?}");
    }

    #[tokio::test]
    async fn several_addresses_of_one_family_are_bound_and_each_is_reached() {
        let listen = addrs(&["127.0.0.1:0", "127.0.0.2:0", "127.0.0.1:0", "[::1]:0"]);
        let identities = [Identity::generate(), Identity::generate()];
        let there = bind(&identities[0], &listen, &[]).await.unwrap();
        let mut bound: Vec<IpAddr> = there.bound_sockets().iter().map(SocketAddr::ip).collect();
        let mut wanted: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
        bound.sort();
        wanted.sort();
        assert_eq!(bound, wanted);
        let accepting = tokio::spawn({
            let there = there.clone();
            async move {
                while let Some(incoming) = there.accept().await {
                    incoming.await.unwrap().closed().await;
                }
            }
        });
        let here = bind(&identities[1], &[], &[]).await.unwrap();
        for addr in there.bound_sockets() {
            let conn = connect(&here, identities[0].id(), &[addr], CTL_ALPN).await;
            conn.unwrap().close(0_u32.into(), b"");
        }
        there.close().await;
        here.close().await;
        accepting.await.unwrap();
    }

    #[test]
    fn the_way_out_is_an_address_for_everything_else_the_first_that_leads_anywhere() {
        let way_out = |list: &[&str]| {
            let listen = addrs(list);
            let mut all = in_order(&listen).into_iter();
            let found = all.find(|(_, opts)| opts.is_default_route());
            found.unwrap().0.to_string()
        };
        assert_eq!(way_out(&["127.0.0.1:1", "10.0.0.1:2"]), "10.0.0.1:2");
        assert_eq!(way_out(&["10.0.0.1:2", "0.0.0.0:3"]), "0.0.0.0:3");
        assert_eq!(way_out(&["10.0.0.2:2", "10.0.0.1:3"]), "10.0.0.2:2");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_an_error_that_names_it() {
        let first = bind(&Identity::generate(), &addrs(&["127.0.0.1:0"]), &[])
            .await
            .unwrap();
        let taken = listen_addrs(&first);
        assert_ne!(taken[0].port(), 0);
        let error = bind(&Identity::generate(), &taken, &[]).await.unwrap_err();
        assert!(error.to_string().contains(&taken[0].to_string()), "{error}");
        first.close().await;
    }
}
