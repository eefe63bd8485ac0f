//! Whom a bundle goes to.

use super::*;
use crate::bundle::Scope;

fn route(path: &str, to: &[&str]) -> Route {
    Route {
        path: RelPath::parse(path).ok(),
        to: to.iter().map(|word| (*word).to_owned()).collect(),
        priority: None,
        lifetime: None,
    }
}

fn routes(node: &Node, routes: Vec<Route>) {
    let groups = [(
        "hq".to_owned(),
        vec!["birch".to_owned(), "cedar".to_owned()],
    )]
    .into();
    node.spool()
        .set_routing(Routing {
            routes,
            groups,
            ..Routing::default()
        })
        .unwrap();
}

fn set(node: &Node, directory: &str, name: &str, value: &str) {
    fs::create_dir_all(node.outbox(directory)).unwrap();
    let at = fs::File::open(node.outbox(directory)).unwrap();
    let name = format!("user.meshbox.{name}");
    assert_eq!(
        node.spool()
            .group
            .check_route_xattr(name.as_bytes(), value.as_bytes()),
        Some(true)
    );
    node.spool().group.note_routed(at.metadata().unwrap().ino());
    rustix::fs::fsetxattr(&at, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
}

/// The names of those it goes to, each with its state.
fn to(node: &Node, bundle: BundleId) -> Vec<String> {
    let rows = node.spool().outbound(None, 99);
    let row = rows
        .into_iter()
        .find(|r| r.bundle == bundle.to_string())
        .unwrap();
    let mut names: Vec<String> = row.recipients.into_iter().map(|r| r.name).collect();
    names.sort();
    names
}

/// Alder, which knows birch and cedar.
fn three() -> (Node, Node, Node) {
    let nodes = (Node::new(), Node::new(), Node::new());
    nodes.0.knows(&nodes.1, "birch");
    nodes.0.knows(&nodes.2, "cedar");
    nodes
}

#[test]
fn the_nearest_directory_beats_the_longest_route_and_that_beats_all() {
    let (alder, birch, cedar) = three();
    let by_id = cedar.id().to_string();
    routes(
        &alder,
        vec![
            Route {
                priority: Some(Priority::Bulk),
                ..route("ops", &["birch"])
            },
            Route {
                priority: Some(Priority::Critical),
                lifetime: Some(Duration::from_secs(7)),
                ..route("ops/deep", &[&by_id])
            },
            route("group", &["@hq"]),
            route("everybody", &["all"]),
        ],
    );
    assert_eq!(to(&alder, alder.drop_file("f", b"1")), ["birch", "cedar"]);
    let ops = alder.drop_file("ops/f", b"2");
    assert_eq!(to(&alder, ops), ["birch"]);
    let manifest = alder.manifest(ops);
    assert_eq!(manifest.manifest().scope, Scope::Ids(vec![birch.id()]));
    assert_eq!(
        (
            manifest.manifest().priority,
            manifest.manifest().lifetime_secs
        ),
        (Priority::Bulk, 3600)
    );
    let deep = alder.drop_file("ops/deep/er/f", b"3");
    assert_eq!(to(&alder, deep), ["cedar"]);
    let manifest = alder.manifest(deep);
    assert_eq!(
        (
            manifest.manifest().priority,
            manifest.manifest().lifetime_secs
        ),
        (Priority::Critical, 7)
    );
    assert_eq!(
        to(&alder, alder.drop_file("opsy/f", b"4")),
        ["birch", "cedar"]
    );
    assert_eq!(
        to(&alder, alder.drop_file("group/f", b"5")),
        ["birch", "cedar"]
    );
    set(&alder, "ops/deep", "to", "birch, cedar");
    set(&alder, "ops/deep/er", "priority", "low");
    let both = alder.drop_file("ops/deep/er/f", b"6");
    assert_eq!(to(&alder, both), ["birch", "cedar"]);
    assert_eq!(alder.manifest(both).manifest().priority, Priority::Low);
    set(&alder, "ops/deep/er", "to", "cedar");
    assert_eq!(
        to(&alder, alder.drop_file("ops/deep/er/g", b"7")),
        ["cedar"]
    );
    assert_eq!(
        to(&alder, alder.drop_file("everybody/f", b"8")),
        ["birch", "cedar"]
    );
}

#[test]
fn attributes_of_directories_hold_after_a_restart_and_move_with_them() {
    let (mut alder, _birch, _cedar) = three();
    set(&alder, "d", "to", "birch");
    alder.stop();
    alder.start();
    assert_eq!(to(&alder, alder.drop_file("d/f", b"1")), ["birch"]);
    fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
    alder.spool().outbox_renamed(&rel("d"), &rel("e"), true);
    assert_eq!(to(&alder, alder.drop_file("e/g", b"2")), ["birch"]);
    assert_eq!(to(&alder, alder.drop_file("d/h", b"3")), ["birch", "cedar"]);
}

#[test]
fn an_attribute_that_means_nothing_is_refused() {
    let alder = Node::new();
    let check = |name: &str, value: &str| {
        let name = format!("user.meshbox.{name}");
        alder
            .spool()
            .group
            .check_route_xattr(name.as_bytes(), value.as_bytes())
    };
    for bad in ["", " , ", "@nowhere", "a b!", "\u{7f}"] {
        assert_eq!(check("to", bad), Some(false), "{bad:?}");
    }
    assert_eq!(check("priority", "urgent"), Some(false));
    assert_eq!(check("priority", "critical"), Some(true));
    assert_eq!(check("to", "birch,all"), Some(true));
    assert_eq!(check("state", "x"), None);
}

#[test]
fn a_name_nobody_has_holds_the_bundle_visibly_until_somebody_has_it() {
    let (mut alder, birch, cedar) = three();
    routes(&alder, vec![route("d", &["birch", "dogwood"])]);
    let held = alder.drop_file("d/f", &pattern(1000));
    let shown = alder.spool().outbox_state(&rel("d/f"), alder.ino("d/f"));
    assert_eq!(shown.word(), "waiting");
    assert!(shown.error.unwrap().contains("nobody known as dogwood"));
    assert_eq!(alder.spool().counts().outbound_pending, 1);
    for node in [&birch, &cedar] {
        assert_eq!(
            alder.spool().ledger.pending(node.id(), None, 9).unwrap(),
            []
        );
        assert!(matches!(
            alder.spool().open_content(held, 0, node.id()),
            Err(ServeError::NotHeld)
        ));
    }
    // Removed from the outbox and after a restart it waits all the same.
    let ino = alder.ino("d/f");
    fs::remove_file(alder.outbox("d/f")).unwrap();
    alder.spool().outbox_removed(&rel("d/f"), ino, 0);
    alder.stop();
    alder.start();
    routes(&alder, vec![]);
    let elm = Node::new();
    alder.knows(&elm, "elm");
    assert_eq!(alder.spool().ledger.pending(elm.id(), None, 9).unwrap(), []);
    let dogwood = Node::new();
    let named = PeerName::parse("dogwood").unwrap();
    // What another says of it is not enough.
    alder
        .spool()
        .member_seen(dogwood.id(), &named, &[], false)
        .unwrap();
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
    alder.knows(&dogwood, "dogwood");
    let row = &alder.spool().outbound(None, 9)[0];
    assert_eq!(
        (row.path.as_str(), alder.spool().outbound(None, 9).len()),
        ("d/f", 1)
    );
    let bundle = BundleId::from_hex(&row.bundle).unwrap();
    assert_eq!(to(&alder, bundle), ["birch", "dogwood"]);
    dogwood.knows(&alder, "alder");
    assert_eq!(dogwood.fetch(&alder, bundle), 1000);
    assert_eq!(
        alder.spool().ledger.pending(cedar.id(), None, 9).unwrap(),
        []
    );
}

#[test]
fn a_file_consumed_before_its_new_name_was_held_stays_consumed() {
    let (alder, birch, cedar) = three();
    birch.knows(&alder, "alder");
    routes(&alder, vec![route("d", &["birch", "dogwood"])]);
    alder.drop_file("f", b"x");
    birch.take_all(&alder);
    birch.consume("f");
    alder.rename("f", "d/f");
    assert_eq!(birch.take_all(&alder), 0, "held");
    let dogwood = Node::new();
    dogwood.knows(&alder, "alder");
    alder.knows(&dogwood, "dogwood");
    birch.take_all(&alder);
    dogwood.take_all(&alder);
    assert_eq!(birch.shows(), [""; 0]);
    assert_eq!(dogwood.shows(), ["d/f"]);
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
    drop(cedar);
}

#[test]
fn a_directory_sent_as_one_is_rung_as_urgent_as_its_route_says() {
    let (alder, _birch, _cedar) = three();
    let critical = Route {
        priority: Some(Priority::Critical),
        ..route("d", &["birch"])
    };
    routes(&alder, vec![critical]);
    alder.fill(".d", &[("a", b"1"), ("b/c", b"2")]);
    let (send, rung) = crossbeam_channel::unbounded();
    alder
        .spool()
        .doorbell
        .subscribe(move |event| drop(send.send(event.clone())));
    let bundle = alder.commit(".d", "d");
    let rung: Vec<Event> = rung.try_iter().collect();
    assert!(
        rung.contains(&Event::Sealed(bundle, Priority::Critical)),
        "{rung:?}"
    );
}

#[test]
fn whatever_is_sealed_is_rung_as_urgent_as_its_route_says() {
    let (alder, birch, _cedar) = three();
    let critical = |path: &str, to: &str| Route {
        priority: Some(Priority::Critical),
        ..route(path, &[to])
    };
    routes(
        &alder,
        vec![critical("d", "birch"), critical("e", "dogwood")],
    );
    let (send, rung) = crossbeam_channel::unbounded();
    alder
        .spool()
        .doorbell
        .subscribe(move |event| drop(send.send(event.clone())));
    let written = alder.drop_file("d/f", b"x");
    let renamed = alder.rename("d/f", "d/g");
    alder.fill(".stage", &[("0", b"by hand")]);
    let request = SendRequest {
        files: vec![(rel(".stage/0"), rel("d/h"))],
        ..SendRequest::default()
    };
    let Sent::Sealed(sent) = alder.spool().send_files(&request).unwrap() else {
        panic!("not sent");
    };
    let held = alder.drop_file("e/f", b"y");
    alder.knows(&birch, "dogwood");
    let rung: Vec<Event> = rung.try_iter().collect();
    for bundle in [written, renamed, sent, held] {
        let rings = rung.iter().filter_map(|event| match event {
            Event::Sealed(of, priority) if *of == bundle => Some(*priority),
            _ => None,
        });
        assert_eq!(rings.collect::<Vec<_>>(), [Priority::Critical], "{rung:?}");
    }
}

#[test]
fn a_second_claimant_of_a_name_gets_nothing_by_it() {
    let (alder, birch, cedar) = three();
    let liar = Node::new();
    alder.knows(&liar, "birch");
    alder.knows(&cedar, "birch");
    assert_eq!(
        alder.spool().group.false_claim(liar.id(), "birch"),
        Some(birch.id())
    );
    routes(&alder, vec![route("d", &["birch"])]);
    let bundle = alder.drop_file("d/f", b"x");
    assert_eq!(
        alder.manifest(bundle).manifest().scope,
        Scope::Ids(vec![birch.id()])
    );
    for node in [&liar, &cedar] {
        assert_eq!(
            alder.spool().ledger.pending(node.id(), None, 9).unwrap(),
            []
        );
    }
}

#[test]
fn the_name_of_a_member_that_was_forgotten_is_free() {
    let (alder, birch, _cedar) = three();
    alder.spool().forget(birch.id()).unwrap();
    routes(&alder, vec![route("d", &["birch"])]);
    alder.drop_file("d/f", b"x");
    let shown = alder.spool().outbox_state(&rel("d/f"), alder.ino("d/f"));
    assert_eq!(shown.word(), "waiting");
    let successor = Node::new();
    alder.knows(&successor, "birch");
    let pending = |node: &Node| {
        alder
            .spool()
            .ledger
            .pending(node.id(), None, 9)
            .unwrap()
            .len()
    };
    assert_eq!((pending(&birch), pending(&successor)), (0, 1));
}

#[test]
fn an_id_that_is_no_member_yet_waits_for_it_and_a_newcomer_gets_nothing_of_others() {
    let (alder, _birch, _cedar) = three();
    let late = Node::new();
    let id = late.id().to_string();
    routes(&alder, vec![route("d", &[&id]), route("e", &["birch"])]);
    let bundle = alder.drop_file("d/f", b"x");
    alder.drop_file("e/f", b"y");
    alder.knows(&late, "late");
    let pending = alder.spool().ledger.pending(late.id(), None, 9).unwrap();
    let bundles: Vec<BundleId> = pending.into_iter().map(|(_, bundle)| bundle).collect();
    assert_eq!(bundles, [bundle]);
}

#[test]
fn a_newer_version_for_some_leaves_the_older_to_the_others() {
    let (alder, birch, cedar) = three();
    let old = alder.drop_file("d/f", b"for both");
    routes(&alder, vec![route("d", &["birch"])]);
    let new = alder.drop_file("d/f", b"for birch");
    let pending = |node: &Node| {
        let rows = alder.spool().ledger.pending(node.id(), None, 9).unwrap();
        rows.into_iter()
            .map(|(_, bundle)| bundle)
            .collect::<Vec<_>>()
    };
    assert_eq!((pending(&birch), pending(&cedar)), (vec![new], vec![old]));
    cedar.knows(&alder, "alder");
    assert_eq!(cedar.fetch(&alder, old), 8);
}

#[test]
fn what_a_manifest_says_of_earlier_names_only_their_recipients_learn() {
    let (alder, birch, _cedar) = three();
    routes(&alder, vec![route("secret", &["birch"])]);
    alder.drop_file("secret/plan", b"x");
    fs::rename(alder.outbox("secret/plan"), alder.outbox("news")).unwrap();
    alder
        .spool()
        .outbox_renamed(&rel("secret/plan"), &rel("news"), false);
    let SealOutcome::Sealed(bundle) = alder.seal("news") else {
        panic!("not sealed")
    };
    let manifest = alder.manifest(bundle);
    assert_eq!(manifest.manifest().scope, Scope::All { generation: 1 });
    assert_eq!(
        (
            manifest.manifest().renamed_from.len(),
            manifest.manifest().supersedes
        ),
        (0, None)
    );
    assert!(
        !manifest
            .signed()
            .bytes
            .windows(6)
            .any(|bytes| bytes == b"secret")
    );
    // The other way, birch knew the earlier name.
    fs::rename(alder.outbox("news"), alder.outbox("secret/plan")).unwrap();
    alder
        .spool()
        .outbox_renamed(&rel("news"), &rel("secret/plan"), false);
    let SealOutcome::Sealed(bundle) = alder.seal("secret/plan") else {
        panic!("not sealed")
    };
    let manifest = alder.manifest(bundle);
    assert_eq!(manifest.manifest().scope, Scope::Ids(vec![birch.id()]));
    assert_eq!(manifest.manifest().renamed_from[0].path, rel("news"));
}

#[test]
fn s22_limits_of_bundles_hold_at_the_sender_and_refuse_at_the_receiver() {
    let (alder, birch) = pair();
    let limited = Routing {
        max_bundle_bytes: Some(100),
        max_recipients: Some(1),
        routes: vec![route("d", &["birch", "cedar"])],
        ..Routing::default()
    };
    let bundle = alder.drop_file("f", &pattern(101));
    birch.spool().set_routing(limited.clone()).unwrap();
    let Offered::Refused(why) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("taken")
    };
    assert_eq!(why, "101 bytes, max_bundle_bytes here is 100");
    let row = &birch.spool().inbound(None, 9)[0];
    assert_eq!(
        (row.state.word(), row.error.as_ref()),
        ("refused", Some(&why))
    );
    // At the sender it is held, and goes when the limit is gone.
    alder.spool().set_routing(limited).unwrap();
    let held = alder.drop_file("g", &pattern(101));
    let shown = alder.spool().outbox_state(&rel("g"), alder.ino("g"));
    assert_eq!(shown.word(), "waiting");
    assert!(
        shown
            .error
            .unwrap()
            .contains("101 bytes, max_bundle_bytes is 100")
    );
    assert!(!alder.spool().ledger.is_pending(held, birch.id()));
    alder.knows(&Node::new(), "cedar");
    alder.drop_file("d/f", b"two recipients");
    let shown = alder.spool().outbox_state(&rel("d/f"), alder.ino("d/f"));
    assert!(
        shown
            .error
            .unwrap()
            .contains("2 recipients, max_recipients is 1")
    );
    alder.spool().set_routing(Routing::default()).unwrap();
    assert_eq!(
        alder.spool().outbox_state(&rel("g"), alder.ino("g")).word(),
        "queued"
    );
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn a_held_bundle_can_be_cancelled_and_replaced() {
    let (alder, birch, _cedar) = three();
    routes(&alder, vec![route("d", &["dogwood"])]);
    let held = alder.drop_file("d/f", b"1");
    assert_eq!(alder.spool().cancel(held).unwrap(), Cancelled::Ended(0));
    assert_eq!(
        alder
            .spool()
            .outbox_state(&rel("d/f"), alder.ino("d/f"))
            .word(),
        "cancelled"
    );
    let replaced = alder.drop_file("d/g", b"2");
    routes(&alder, vec![route("d", &["birch"])]);
    let newer = alder.drop_file("d/g", b"3");
    let shown = alder.spool().outbound_bundle(replaced).unwrap();
    assert_eq!(
        shown.state, "superseded",
        "it was shown as queued for nobody"
    );
    let dogwood = Node::new();
    alder.knows(&dogwood, "dogwood");
    assert_eq!(
        alder.spool().ledger.pending(dogwood.id(), None, 9).unwrap(),
        []
    );
    let rows = alder.spool().ledger.pending(birch.id(), None, 9).unwrap();
    assert_eq!(rows.iter().map(|(_, b)| *b).collect::<Vec<_>>(), [newer]);
    assert_eq!(alder.spool().counts().outbound_pending, 1);
}

#[test]
fn what_somebody_waits_for_is_shown_newest_first_and_counted_once() {
    let (alder, birch, cedar) = three();
    let paths = |limit| {
        let (rows, more) = alder.spool().outbound_unfinished(limit);
        let paths: Vec<String> = rows.into_iter().map(|row| row.path).collect();
        (paths, more)
    };
    let done = alder.drop_file("done", b"1");
    let half = alder.drop_file("half", b"2");
    alder.drop_file("both", b"3");
    routes(&alder, vec![route("d", &["dogwood"])]);
    alder.drop_file("d/held", b"4");
    for (node, bundle) in [(&birch, done), (&cedar, done), (&birch, half)] {
        node.fetch(&alder, bundle);
        alder.spool().take_receipt(&node.receipt()).unwrap();
    }
    let words = |paths: &[&str]| {
        paths
            .iter()
            .map(|&path| path.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(9), (words(&["d/held", "both", "half"]), 0));
    assert_eq!(paths(2), (words(&["d/held", "both"]), 1));
}

#[test]
fn what_waits_for_a_first_member_is_not_finished() {
    let alder = Node::new();
    alder.drop_file("alone", b"1");
    let (rows, more) = alder.spool().outbound_unfinished(9);
    assert_eq!((rows.len(), more), (1, 0));
    assert_eq!(rows[0].path, "alone");
}
