//! What one small file costs: rows inserted and removed, and submits to the journal, from its first write to its receipt.

use super::*;
use crate::journal::Submitted;
use crate::spool::ledger::probe::DELIVERIES;

/// Most rows of one file at both ends together.
const ROWS: usize = 17;

/// Most submits.
const SUBMITS: usize = 5;

/// What was submitted, a line for each batch: `+` and the number of the table of a row that was put, `-` of one removed.
fn lines(batches: &[Submitted]) -> String {
    let batches = batches.iter().map(|rows| {
        let rows = rows.iter().map(|(table, removed)| {
            let sign = if *removed { '-' } else { '+' };
            format!(" {sign}{table}")
        });
        rows.collect::<String>() + "\n"
    });
    batches.collect()
}

#[test]
fn one_small_file_costs_few_rows_and_submits() {
    let (alder, birch) = pair();
    let go = |name: &str, bytes: &[u8]| {
        let bundle = alder.drop_file(name, bytes);
        birch.fetch(&alder, bundle);
        assert!(alder.spool().take_receipt(&birch.receipt()).unwrap());
        alder.spool().journal.flush().unwrap();
        birch.spool().journal.flush().unwrap();
        [&alder, &birch].map(|node| {
            let mut batches = node.spool().journal.submitted();
            // Whoever waits for the disk, without a row.
            batches.retain(|rows| !rows.is_empty());
            batches
        })
    };
    // What is written once, with the first file.
    go("first", b"1");
    let [sender, receiver] = go("second", b"22");
    let submits = sender.len() + receiver.len();
    let rows: usize = sender.iter().chain(&receiver).map(Vec::len).sum();
    assert!(
        rows <= ROWS && submits <= SUBMITS,
        "{rows} rows in {submits} submits\nsender:\n{}receiver:\n{}",
        lines(&sender),
        lines(&receiver)
    );
}

#[test]
fn a_bundle_has_rows_for_all_its_recipients_or_for_none() {
    let (mut alder, birch) = pair();
    let (cedar, late) = (Node::new(), Node::new());
    for (node, name) in [(&cedar, "cedar"), (&late, "late")] {
        node.knows(&alder, "alder");
        if name == "cedar" {
            alder.knows(node, name);
        }
    }
    let bundle = alder.drop_file("a", b"x");
    let rows = |alder: &Node| {
        let rows = alder
            .spool()
            .journal
            .keys(DELIVERIES.below(&bundle), usize::MAX);
        rows.unwrap().len()
    };
    let waits = |alder: &Node, node: &Node| alder.spool().ledger.is_pending(bundle, node.id());
    assert_eq!(rows(&alder), 0);
    assert!(waits(&alder, &birch) && waits(&alder, &cedar) && !waits(&alder, &late));
    birch.fetch(&alder, bundle);
    assert!(alder.spool().take_receipt(&birch.receipt()).unwrap());
    assert_eq!(rows(&alder), 2);
    alder.stop();
    alder.start();
    assert!(!waits(&alder, &birch) && waits(&alder, &cedar));
    alder.knows(&late, "late");
    assert_eq!(rows(&alder), 3);
    assert!(!waits(&alder, &birch) && waits(&alder, &cedar) && waits(&alder, &late));
    for node in [&cedar, &late] {
        node.fetch(&alder, bundle);
        assert!(alder.spool().take_receipt(&node.receipt()).unwrap());
    }
    assert_eq!(alder.spool().ledger.pending_count(late.id()), 0);
    assert!(!alder.spool().ledger.is_open(bundle).unwrap());
}
