//! What names cost that one member takes from another.

use super::*;
use crate::journal;

/// Reads of the journal while `birch` publishes a bundle of `cedar`.
fn reads(birch: &Node, cedar: &Node, bundle: BundleId) -> u64 {
    let before = journal::reads_here();
    birch.fetch(cedar, bundle);
    journal::reads_here() - before
}

/// Two members made `ls` of a third take a minute: thousands of files of one called `d~cedar-K`, a directory `d` of as
/// many files of the other, and each file tried each name.
#[test]
fn names_in_the_way_of_a_directory_cost_once_and_not_for_each_file_in_it() {
    const TAKEN: u64 = 60;
    const FILES: u64 = 100;
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    let names: Vec<String> = (0..FILES).map(|n| format!("f{n}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
    cedar.fill(".free", &files);
    let free = reads(&birch, &cedar, cedar.commit(".free", "free"));
    birch.fetch(&alder, alder.drop_file("d", b"in the way"));
    birch.fetch(&alder, alder.drop_file("d~cedar", b"in the way"));
    for number in 2..TAKEN {
        let name = format!("d~cedar-{number}");
        birch.fetch(&alder, alder.drop_file(&name, b"in the way"));
    }
    cedar.fill(".d", &files);
    let blocked = reads(&birch, &cedar, cedar.commit(".d", "d"));
    assert!(
        blocked <= free + 4 * TAKEN,
        "{blocked} reads, {free} where the name is free"
    );
    // All of it is together, and what comes later is with it.
    birch.fetch(&cedar, cedar.drop_file("d/later", b"later"));
    let holds = |name: &str| {
        let tops = fs::read_dir(birch.inbox("")).unwrap();
        let tops = tops.map(|top| top.unwrap().path());
        let holds: Vec<_> = tops.filter(|top| top.join(name).exists()).collect();
        holds
    };
    let top = holds("later");
    assert_eq!(top.len(), 1);
    assert_eq!(fs::read_dir(&top[0]).unwrap().count() as u64, FILES + 1);
    let top = top[0].file_name().unwrap().to_str().unwrap();
    assert!(top.starts_with("d~cedar-"), "{top}");
}

/// A file whose name is taken finds a free one without trying all that are taken, and keeps it.
#[test]
fn names_in_the_way_of_a_file_are_not_all_tried() {
    const TAKEN: u64 = 100;
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&alder, alder.drop_file("f", b"in the way"));
    birch.fetch(&alder, alder.drop_file("f~cedar", b"in the way"));
    for number in 2..TAKEN {
        let name = format!("f~cedar-{number}");
        birch.fetch(&alder, alder.drop_file(&name, b"in the way"));
    }
    let cost = reads(&birch, &cedar, cedar.drop_file("f", b"first"));
    assert!(cost < 2 * TAKEN, "{cost} reads");
    birch.fetch(&cedar, cedar.drop_file("f", b"second"));
    let shown = fs::read_dir(birch.inbox("")).unwrap();
    let shown = shown.map(|file| fs::read(file.unwrap().path()).unwrap());
    let of_cedar: Vec<_> = shown.filter(|bytes| bytes != b"in the way").collect();
    assert_eq!(of_cedar, [b"second"]);
}
