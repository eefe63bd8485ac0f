//! Links that are slow, lossy, long, silent or move; and what passes first on them.

use super::faults::alone;
use super::forwarder::{Forwarder, Quality};
use super::*;
use crate::bundle::Priority;
use crate::mesh::wire::Told;
use crate::protocol::session::Input;

/// 100 Mbit/s with a queue of 64 KiB.
const HUNDRED: Quality = Quality {
    delay: Duration::from_millis(1),
    lost_ppm: 0,
    rate: 12_500_000,
    queue: 64 * 1024,
};

/// Two members that reach each other through `link` only; alder dials.
fn pair_over(quality: Quality) -> (Forwarder, Member, Member) {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let listening = MeshConfig {
        listen: vec!["[::1]:0".parse().unwrap()],
        congestion: Congestion::Auto,
        ..config("birch", &group)
    };
    let b = start(&birch, listening);
    let link = Forwarder::to(b.listen_addrs()[0], quality, 42);
    let dialling = MeshConfig {
        peers: vec![(birch.id(), link.front())],
        congestion: Congestion::Auto,
        ..config("alder", &group)
    };
    let a = start(&alder, dialling);
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
    (link, (alder, a), (birch, b))
}

fn sending(alder: &Real, bundle: BundleId, to: PeerId) {
    alder.wait_delivery(bundle, to, "sending");
}

#[test]
fn what_is_critical_arrives_before_the_bulk_that_is_on_its_way() {
    let (_link, (alder, a), (birch, _b)) = pair_over(HUNDRED);
    let large = pattern(48 << 20);
    let bulk = alder.send_as("bulk", &large, Priority::Bulk, &[birch.id()]);
    sending(&alder, bulk, birch.id());
    // One that travels with its offer, and one that is fetched by ranges. Bulk that has begun to go out does not ask; the
    // next piece of it does.
    for n in 0.. {
        let (small, ranges) = (format!("small{n}"), format!("ranges{n}"));
        alder.send_as(&small, &pattern(4096), Priority::Critical, &[birch.id()]);
        alder.send_as(
            &ranges,
            &pattern(2 << 20),
            Priority::Critical,
            &[birch.id()],
        );
        birch.wait_inbox(&small);
        birch.wait_inbox(&ranges);
        let arrived = birch.inbox_has("bulk").is_some();
        assert!(!arrived, "bulk is still on its way, and made way");
        if a.paced() > 0 {
            break;
        }
    }
    assert!(birch.wait_inbox("bulk") == large, "and was not starved");
    alder.wait_delivered(birch.id());
}

#[test]
fn what_is_critical_for_one_peer_holds_back_bulk_for_another_over_the_same_interface() {
    let (_link, (alder, a), (birch, _b)) = pair_over(HUNDRED);
    let cedar = Real::new();
    let listening = MeshConfig {
        listen: vec!["[::1]:0".parse().unwrap()],
        ..config("cedar", &a.hub.group())
    };
    let c = start(&cedar, listening);
    let other = Forwarder::to(c.listen_addrs()[0], HUNDRED, 43);
    a.hub.known(cedar.id()).configure(other.front());
    eventually("cedar", || connected(&a, cedar.id()));
    let large = pattern(48 << 20);
    let bulk = alder.send_as("bulk", &large, Priority::Bulk, &[birch.id()]);
    sending(&alder, bulk, birch.id());
    let held = a.paced();
    // Bulk that has begun to go out does not ask; the next piece of it does.
    for n in 0.. {
        let path = format!("c{n}");
        alder.send_as(&path, &pattern(4 << 20), Priority::Critical, &[cedar.id()]);
        cedar.wait_inbox(&path);
        if a.paced() > held {
            break;
        }
        let arrived = birch.inbox_has("bulk").is_some();
        assert!(!arrived, "bulk for birch never made way for cedar");
    }
    assert!(birch.wait_inbox("bulk") == large);
}

#[test]
fn zeros_cost_next_to_nothing_on_the_wire() {
    let any = Quality { rate: 0, ..HUNDRED };
    let (link, (alder, _a), (birch, _b)) = pair_over(any);
    let before = link.bytes();
    let mut holes = vec![0; 64 << 20];
    // In the middle, so that zeros are on both sides; it costs one chunk.
    holes[40 << 20] = 7;
    alder.send_as("holes", &holes, Priority::Routine, &[birch.id()]);
    assert!(birch.wait_inbox("holes") == holes);
    alder.wait_delivered(birch.id());
    let cost = link.bytes() - before;
    assert!(cost < (1 << 20) + (300 << 10), "{cost} bytes");
    alder.send_as(
        "zeros",
        &holes[..40 << 20],
        Priority::Routine,
        &[birch.id()],
    );
    assert!(birch.wait_inbox("zeros").iter().all(|byte| *byte == 0));
    let cost = link.bytes() - before - cost;
    assert!(cost < 300 << 10, "{cost} bytes");
}

#[test]
fn bulk_arrives_under_constant_critical_load() {
    let (_, (alder, _a), (birch, _b)) = pair();
    let large = pattern(4 << 20);
    alder.send_as("bulk", &large, Priority::Bulk, &[birch.id()]);
    let mut sent = 0;
    while birch.inbox_has("bulk").is_none() {
        let path = format!("c{sent}");
        alder.send_as(&path, &pattern(100_000), Priority::Critical, &[birch.id()]);
        birch.wait_inbox(&path);
        sent += 1;
        assert!(sent < 20_000, "bulk starves");
    }
    assert!(birch.wait_inbox("bulk") == large);
}

#[test]
fn a_backlog_is_offered_by_priority() {
    let group = GroupKey::generate();
    let alder = Real::new();
    let a = start(&alder, config("alder", &group));
    let receiver = Scripted::new();
    for n in 0..600 {
        let path = format!("n{n}");
        alder.send_as(&path, b"x", Priority::Low, &[receiver.id()]);
    }
    let urgent = alder.send_as("late", b"!", Priority::Critical, &[receiver.id()]);
    let (_conn, mut channel) = receiver.join(&a, &group);
    let mut offered = Vec::new();
    receiver.runtime.block_on(async {
        while !offered.contains(&urgent) && offered.len() < crate::delivery::WINDOW {
            match channel.heard().await {
                Frame::Pending(ids) => {
                    let want = |id| (id, Verdict::Want);
                    let wants = Frame::Verdicts(ids.into_iter().map(want).collect());
                    channel.send(&wants).await.unwrap();
                }
                Frame::Offer(offer) => offered.push(offer.signed.id()),
                _ => {}
            }
        }
    });
    // Its lane and the other one run at the same time, so others of the first window may be faster; the backlog is not.
    assert!(offered.contains(&urgent), "not in the first window");
}

#[test]
fn a_whole_window_of_offers_travels_without_one_answer() {
    let group = GroupKey::generate();
    let alder = Real::new();
    let a = start(&alder, config("alder", &group));
    let receiver = Scripted::new();
    for n in 0..crate::delivery::WINDOW {
        alder.send(&format!("n{n}"), b"x", &[receiver.id()]);
    }
    let (_conn, mut channel) = receiver.join(&a, &group);
    let (mut questions, mut offers) = (0, 0);
    receiver.runtime.block_on(async {
        while offers < crate::delivery::WINDOW {
            match channel.heard().await {
                Frame::Pending(ids) => {
                    questions += 1;
                    let want = |id| (id, Verdict::Want);
                    let wants = Frame::Verdicts(ids.into_iter().map(want).collect());
                    channel.send(&wants).await.unwrap();
                }
                // Never answered.
                Frame::Offer(_) => offers += 1,
                _ => {}
            }
        }
    });
    assert_eq!(questions, 1, "one round trip for all");
}

#[test]
fn a_lossy_path_delivers_and_is_remembered() {
    let quality = Quality {
        delay: Duration::from_millis(5),
        lost_ppm: 20_000,
        ..Quality::default()
    };
    let (link, (alder, a), (birch, _b)) = pair_over(quality);
    let large = pattern(6 << 20);
    alder.send("large", &large, &[birch.id()]);
    assert!(birch.wait_inbox("large") == large);
    alder.wait_delivered(birch.id());
    eventually("remembered", || a.hub.net.paths.is_suffering(link.front()));
    let (passed, lost) = link.counts();
    assert!(lost > passed / 100, "the link did lose: {lost} of {passed}");
}

#[test]
fn a_path_as_long_as_to_a_satellite_and_a_sender_that_moves_lose_nothing() {
    let quality = Quality {
        delay: Duration::from_millis(150),
        ..Quality::default()
    };
    let (link, (alder, _a), (birch, _b)) = pair_over(quality);
    let large = pattern(8 << 20);
    let bundle = alder.send("large", &large, &[birch.id()]);
    sending(&alder, bundle, birch.id());
    link.move_sender();
    for n in 0..50 {
        alder.send(&format!("n{n}"), &pattern(n), &[birch.id()]);
    }
    birch.wait_inbox_len(51);
    assert!(birch.wait_inbox("large") == large);
    alder.wait_delivered(birch.id());
}

/// A peer that is killed without a word looks like this too.
#[test]
fn s17_a_peer_that_falls_silent_is_given_up_and_found_again_with_all_that_was_sent_meanwhile() {
    let (link, (alder, a), (birch, b)) = pair_over(Quality::default());
    let large = pattern(4 << 20);
    link.silence(true);
    eventually("noticed", || {
        !connected(&a, birch.id()) && !connected(&b, alder.id())
    });
    for n in 0..300 {
        alder.send(&format!("n{n}"), &pattern(n), &[birch.id()]);
    }
    alder.send("large", &large, &[birch.id()]);
    birch.send("back", b"x", &[alder.id()]);
    eventually("shown", || error_of(&a, birch.id()).is_some());
    link.silence(false);
    birch.wait_inbox_len(301);
    assert!(birch.wait_inbox("large") == large);
    alder.wait_inbox("back");
    // S25: what was said of the path does not outlive it.
    eventually("well again", || {
        connected(&a, birch.id()) && error_of(&a, birch.id()).is_none()
    });
}

#[test]
fn ten_thousand_unread_control_messages_do_not_cost_the_connection() {
    let (group, (alder, a), (birch, _b)) = pair();
    let talker = Scripted::new();
    let (conn, mut channel) = talker.join(&a, &group);
    // What answers is stuck, so that nothing of what follows can be dealt with.
    let stuck = a.hub.care.stuck.lock();
    let id = |n: u32| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        BundleId(bytes)
    };
    talker.runtime.block_on(async {
        for n in 0..10_000 {
            // Each is a piece of its own.
            channel.send(&Frame::Pending(vec![id(n)])).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    alder.send("still", b"fine", &[birch.id()]);
    birch.wait_inbox("still");
    drop(stuck);
    let mut answered = 0;
    talker.runtime.block_on(async {
        while answered < 10_000 {
            if let Frame::Verdicts(list) = channel.heard().await {
                for (bundle, verdict) in list {
                    assert_eq!((bundle, verdict), (id(answered), Verdict::Want));
                    answered += 1;
                }
            }
        }
    });
    assert_eq!(conn.close_reason(), None);
}

#[test]
fn s17_a_member_that_leaves_more_behind_than_is_heard_is_not_taken_for_connected() {
    let (group, _alder, a) = alone();
    let scripted = Scripted::new();
    let (conn, mut channel) = scripted.join(&a, &group);
    eventually("there", || connected(&a, scripted.id()));
    // The reader waits for its turn with some, while more than the queue holds comes behind them.
    for _ in 0..70 {
        scripted.say(&mut channel, &Frame::Members(vec![]));
    }
    for _ in 0..2000 {
        scripted.say(&mut channel, &Frame::CancelsSeen(vec![]));
    }
    conn.close(0u32.into(), b"gone");
    eventually("gone", || !connected(&a, scripted.id()));
}

#[test]
fn a_member_that_floods_is_slowed_and_shown_and_others_do_not_notice() {
    let (group, (alder, a), (birch, b)) = pair();
    let flood = Scripted::new();
    let (conn, mut channel) = flood.join(&a, &group);
    let news = |n: u8| {
        Frame::Members(vec![Told {
            id: birch.id(),
            name: name("birch"),
            addrs: vec![([10, 0, 0, n], 9).into()],
        }])
    };
    flood.runtime.block_on(async {
        for n in 0..200 {
            channel.send(&news(n)).await.unwrap();
        }
    });
    let of = |mesh: &Mesh, id: PeerId| {
        let all = mesh.peers();
        all.into_iter().find(|p| p.id == id.to_string()).unwrap()
    };
    eventually("shown", || of(&a, flood.id()).limited.is_some());
    let why = of(&a, flood.id()).limited.unwrap();
    assert!(why.contains("too many announcements"), "{why}");
    assert!(of(&a, flood.id()).slowed > 0);
    for n in 0..100 {
        alder.send(&format!("n{n}"), &pattern(n), &[birch.id()]);
        birch.send(&format!("m{n}"), &pattern(n), &[alder.id()]);
    }
    birch.wait_inbox_len(100);
    alder.wait_inbox_len(100);
    assert_eq!(of(&a, birch.id()).limited, None);
    assert_eq!(of(&b, alder.id()).limited, None);
    assert_eq!(conn.close_reason(), None, "slowed, not cut off");
}

#[test]
fn s25_a_session_that_hears_nothing_of_a_seal_looks_by_itself() {
    let (_, (alder, a), (birch, _b)) = pair();
    let bells = alder.spool().doorbell.ring_nobody();
    alder.send_as("quiet", b"x", Priority::Bulk, &[birch.id()]);
    // More rings at once than fit: the rest is found by looking.
    let session = a.hub.roster.get(birch.id()).unwrap().session().unwrap();
    for n in 0..5000u32 {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        session.ring(Input::Sealed(BundleId(bytes), Priority::Routine));
    }
    birch.wait_inbox("quiet");
    alder.spool().doorbell.ring_again(bells);
    alder.send("heard", b"x", &[birch.id()]);
    birch.wait_inbox("heard");
}

/// A packet to port 0 fails with EINVAL, upon which offload goes off for the whole socket, as it does on interfaces that
/// cannot do it.
#[test]
fn s25_failed_segmentation_offload_is_switched_off_and_nothing_is_lost() {
    let (_, (alder, a), (birch, _b)) = pair();
    let impossible: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = probe.send_to(b"x", impossible).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    let nobody = iroh::EndpointAddr::from_parts(
        iroh::EndpointId::from_bytes(Identity::generate().id().as_bytes()).unwrap(),
        [iroh::TransportAddr::Ip(impossible)],
    );
    a.hub.runtime.block_on(async {
        let endpoint = a.hub.net.endpoint().unwrap();
        let nowhere = endpoint.connect(nobody, CTL_ALPN);
        drop(tokio::time::timeout(Duration::from_millis(500), nowhere).await);
    });
    let large = pattern(8 << 20);
    alder.send("large", &large, &[birch.id()]);
    assert!(birch.wait_inbox("large") == large);
}

/// A row of the table of `scripts/bench-mesh`.
fn row(what: &str, figure: &str, goal: &str) {
    println!("| {what} | {figure} | {goal} |");
}

/// Figures for `scripts/bench-mesh`.
#[test]
#[ignore = "a measurement"]
fn measure_links() {
    let lossy = Quality {
        delay: Duration::from_millis(25),
        lost_ppm: 10_000,
        queue: 1 << 20,
        ..HUNDRED
    };
    let long = Quality {
        delay: Duration::from_millis(150),
        queue: 4 << 20,
        ..HUNDRED
    };
    let size = 192 << 20;
    for (what, quality, goal) in [
        ("50 ms and 1 % loss", lossy, "≥ 70 %"),
        ("300 ms", long, ""),
    ] {
        let (_link, (alder, _a), (birch, _b)) = pair_over(quality);
        let large = pattern(size);
        alder.send("large", &large, &[birch.id()]);
        // Neither hashing nor what comes before the path is known.
        let until = |bytes: u64| {
            while birch.bytes().1 < bytes {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        until(size as u64 / 4);
        let begun = Instant::now();
        until(size as u64);
        let speed = 0.75 * size as f64 / begun.elapsed().as_secs_f64();
        row(
            &format!("the last 144 of 192 MiB over 100 Mbit/s, {what}"),
            &format!(
                "{:.2} MiB/s, {:.0} % of the link",
                speed / 1_048_576.0,
                100.0 * speed / quality.rate as f64
            ),
            goal,
        );
    }
    let far = Quality {
        delay: Duration::from_millis(100),
        ..Quality::default()
    };
    let mut times = Vec::new();
    for quality in [Quality::default(), far] {
        let (_link, (alder, _a), (birch, _b)) = pair_over(quality);
        let content = pattern(4096);
        let begun = Instant::now();
        for n in 0..1000 {
            alder.send(&format!("n{n}"), &content, &[birch.id()]);
        }
        birch.wait_inbox_len(1000);
        times.push(begun.elapsed());
    }
    let (near, far) = (times[0], times[1]);
    row(
        "1,000 x 4 KiB over 200 ms",
        &format!("{far:.2?}, {:.2?} longer than without delay", far - near),
        "≤ 2 s longer",
    );
    let (link, (alder, a), (birch, b)) = pair_over(Quality::default());
    let begun = Instant::now();
    link.silence(true);
    eventually("noticed", || {
        !connected(&a, birch.id()) && !connected(&b, alder.id())
    });
    let noticed = begun.elapsed();
    row(
        "silence is noticed by both sides after",
        &format!("{noticed:.1?}"),
        "≤ 10 s",
    );
    std::thread::sleep(Duration::from_secs(60).saturating_sub(noticed));
    alder.send("after", b"x", &[birch.id()]);
    let begun = Instant::now();
    link.silence(false);
    birch.wait_inbox("after");
    let after = begun.elapsed();
    row(
        "60 s without UDP: delivered after its end within",
        &format!("{after:.1?}"),
        "",
    );
}

/// Figures for `scripts/bench-mesh`: a critical file of 4 KiB beside bulk over 100 Mbit/s.
#[test]
#[ignore = "a measurement"]
fn measure_priorities() {
    let (_link, (alder, _a), (birch, _b)) = pair_over(HUNDRED);
    let times = |tag: &str, count: usize| {
        let mut times: Vec<Duration> = (0..count)
            .map(|n| {
                let (path, begun) = (format!("{tag}{n}"), Instant::now());
                alder.send_as(&path, &pattern(4096), Priority::Critical, &[birch.id()]);
                birch.wait_inbox(&path);
                let took = begun.elapsed();
                std::thread::sleep(Duration::from_millis(30));
                took
            })
            .collect();
        times.sort();
        println!(
            "{tag}: p50 {:?} p90 {:?} p99 {:?} worst {:?}",
            times[count / 2],
            times[count * 9 / 10],
            times[count * 99 / 100],
            times[count - 1]
        );
    };
    times("warm", 20);
    times("idle", 200);
    let bulk = alder.send_as("bulk", &pattern(512 << 20), Priority::Bulk, &[birch.id()]);
    sending(&alder, bulk, birch.id());
    times("beside bulk", 200);
    assert!(birch.inbox_has("bulk").is_none(), "bulk ended too early");
}
