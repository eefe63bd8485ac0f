//! Files sent as one bundle by hand.

use super::*;

/// Puts a file below an ignored directory, as the command line does.
fn stage(node: &Node, number: usize, bytes: &[u8]) -> RelPath {
    let path = format!(".stage/{number}");
    fs::create_dir_all(node.outbox(".stage")).unwrap();
    fs::write(node.outbox(&path), bytes).unwrap();
    rel(&path)
}

fn request(node: &Node, files: &[(&str, &[u8])]) -> SendRequest {
    let staged =
        |(number, (name, bytes)): (usize, &(&str, &[u8]))| (stage(node, number, bytes), rel(name));
    SendRequest {
        files: files.iter().enumerate().map(staged).collect(),
        ..SendRequest::default()
    }
}

fn send(node: &Node, request: &SendRequest) -> Sent {
    let sent = node.spool().send_files(request).unwrap();
    // The stage goes, as when the command ends.
    for (from, _) in &request.files {
        let at = node.state().join("outbox").join(from.as_path());
        let ino = fs::metadata(&at).unwrap().ino();
        fs::remove_file(&at).unwrap();
        node.spool().outbox_removed(from, ino, 0);
    }
    sent
}

fn sealed(sent: Sent) -> BundleId {
    match sent {
        Sent::Sealed(bundle) => bundle,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_without_a_name_in_the_outbox_arrive_as_one_bundle() {
    let (alder, birch) = pair();
    let large = pattern(200_000);
    let bundle = sealed(send(
        &alder,
        &request(&alder, &[("d/large", &large), ("small", b"s")]),
    ));
    assert!(
        alder.spool().content.held_bytes() > 0,
        "kept though no name shows it"
    );
    assert_eq!(birch.fetch(&alder, bundle), 200_001);
    assert_eq!(fs::read(birch.inbox("d/large")).unwrap(), large);
    assert_eq!(fs::read(birch.inbox("small")).unwrap(), b"s");
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert_eq!(alder.spool().content.held_bytes(), 0);
}

#[test]
fn the_same_id_with_the_same_content_sends_nothing_and_with_other_content_is_an_error() {
    let (mut alder, birch) = pair();
    let with_id = |files: &[(&str, &[u8])], alder: &Node| SendRequest {
        id: Some("report-7".to_owned()),
        ..request(alder, files)
    };
    let bundle = sealed(send(&alder, &with_id(&[("a", b"1"), ("b", b"2")], &alder)));
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    alder.power_loss();
    // In another order, and after it was delivered.
    let again = with_id(&[("b", b"2"), ("a", b"1")], &alder);
    assert_eq!(send(&alder, &again), Sent::Same(bundle));
    let others: [&[(&str, &[u8])]; 3] = [
        &[("a", b"1")],
        &[("a", b"1"), ("b", b"3")],
        &[("a", b"1"), ("c", b"2")],
    ];
    for other in others {
        let sent = send(&alder, &with_id(other, &alder));
        assert_eq!(sent, Sent::Conflict(bundle), "{other:?}");
    }
    let to_one = SendRequest {
        to: vec![birch.id().to_string()],
        ..with_id(&[("a", b"1"), ("b", b"2")], &alder)
    };
    assert_eq!(send(&alder, &to_one), Sent::Conflict(bundle));
    assert_eq!(alder.spool().outbound(None, 9).len(), 1);
    assert_eq!(alder.spool().outbox.sent_as("report-7"), Some(bundle));
    assert_eq!(alder.spool().content.held_bytes(), 0);
}

#[test]
fn what_send_says_beats_the_routes_and_routes_must_agree() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    alder.knows(&cedar, "cedar");
    let route = |path: &str, to: &str| Route {
        path: RelPath::parse(path).ok(),
        to: vec![to.to_owned()],
        priority: Some(Priority::Low),
        lifetime: None,
    };
    let routes = vec![route("a", "birch"), route("b", "cedar")];
    let routing = Routing {
        routes,
        ..Routing::default()
    };
    alder.spool().set_routing(routing).unwrap();
    let both: &[(&str, &[u8])] = &[("a/f", b"1"), ("b/f", b"2")];
    let Sent::Refused(why) = send(&alder, &request(&alder, both)) else {
        panic!("sent")
    };
    assert!(why.contains("--to"), "{why}");
    let asked = SendRequest {
        to: vec!["cedar".to_owned()],
        priority: Some(Priority::Critical),
        ..request(&alder, both)
    };
    let bundle = sealed(send(&alder, &asked));
    assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
    assert!(alder.spool().ledger.is_pending(bundle, cedar.id()));
    assert_eq!(
        alder.manifest(bundle).manifest().priority,
        Priority::Critical
    );
    let routed = sealed(send(&alder, &request(&alder, &[("a/f", b"3")])));
    assert!(alder.spool().ledger.is_pending(routed, birch.id()));
    assert_eq!(alder.manifest(routed).manifest().priority, Priority::Low);
    // To nobody known: held, and found by its own id when it is sealed anew.
    let asked = SendRequest {
        to: vec!["dogwood".to_owned()],
        id: Some("x".to_owned()),
        ..request(&alder, &[("f", b"4")])
    };
    let Sent::Held(held, why) = send(&alder, &asked) else {
        panic!("not held")
    };
    assert!(why.contains("dogwood"));
    let dogwood = Node::new();
    alder.knows(&dogwood, "dogwood");
    let bundle = alder.spool().outbox.sent_as("x").unwrap();
    assert!(bundle != held && alder.spool().ledger.is_pending(bundle, dogwood.id()));
}

#[test]
fn what_a_newer_bundle_for_fewer_does_not_replace_is_still_on_its_way() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    alder.knows(&cedar, "cedar");
    let first = alder.drop_file("f", b"for both");
    let asked = SendRequest {
        to: vec![cedar.id().to_string()],
        ..request(&alder, &[("f", b"for cedar")])
    };
    let second = sealed(send(&alder, &asked));
    let bundles = || alder.spool().outbox.unfinished(None).unwrap().bundles;
    assert!(bundles().contains(&first) && bundles().contains(&second));
    assert_eq!(alder.spool().counts().outbound_pending, 2);
    birch.fetch(&alder, first);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert_eq!(bundles().into_iter().collect::<Vec<_>>(), [second]);
}

#[test]
fn s22_a_bundle_over_a_limit_is_an_error_and_nothing_of_it_is_sent() {
    let limited = |files, bytes| Routing {
        max_bundle_files: files,
        max_bundle_bytes: bytes,
        ..Routing::default()
    };
    let two: &[(&str, &[u8])] = &[("a", b"12"), ("b", b"34")];
    for (routing, says) in [
        (limited(Some(1), None), "2 files, max_bundle_files is 1"),
        (limited(None, Some(3)), "4 bytes, max_bundle_bytes is 3"),
    ] {
        let (alder, birch) = pair();
        alder.spool().set_routing(routing.clone()).unwrap();
        let sent = send(&alder, &request(&alder, two));
        assert_eq!(sent, Sent::Refused(says.to_owned()));
        assert_eq!(alder.spool().outbound(None, 9).len(), 0);
        // And what another sends is refused, visibly.
        birch.spool().set_routing(routing).unwrap();
        alder.spool().set_routing(Routing::default()).unwrap();
        let bundle = sealed(send(&alder, &request(&alder, two)));
        let offered = birch
            .spool()
            .offered(alder.manifest(bundle), alder.id())
            .unwrap();
        let Offered::Refused(why) = offered else {
            panic!("{offered:?}")
        };
        assert_eq!(why, says.replace(" is ", " here is "));
        assert_eq!(birch.spool().inbound(None, 9)[0].state, "refused");
    }
}
