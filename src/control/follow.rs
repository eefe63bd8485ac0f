//! `status --watch`: one page of status, then what changes in it. Pure: from two pages to the rows that differ.

use std::collections::HashMap;

use super::{InboundRow, News, OutboundRow, PeerRow, Status};

/// What differs between two pages; nothing if that is nothing. Rows that are on `new` no more are not told of: they were pushed
/// out by newer ones.
pub(crate) fn news(old: &Status, new: &Status) -> Option<News> {
    let news = News {
        outbound: changed(&old.outbound, &new.outbound, |row| &row.bundle),
        inbound: changed(&old.inbound, &new.inbound, |row| &row.bundle),
        peers: changed(&old.peers, &new.peers, |row| &row.id),
        counts: new.counts,
        trouble: new.trouble.clone(),
    };
    let rows = news.outbound.len() + news.inbound.len() + news.peers.len();
    let same = rows == 0 && old.counts == new.counts && old.trouble == new.trouble;
    (!same).then_some(news)
}

/// Brings a page up to date, for who shows it. At most `limit` rows of each list stay.
pub(crate) fn merge(page: &mut Status, news: News, limit: usize) {
    merge_rows(
        &mut page.outbound,
        news.outbound,
        limit,
        |row: &OutboundRow| &row.bundle,
    );
    merge_rows(
        &mut page.inbound,
        news.inbound,
        limit,
        |row: &InboundRow| &row.bundle,
    );
    merge_rows(&mut page.peers, news.peers, usize::MAX, |row: &PeerRow| {
        &row.id
    });
    page.counts = news.counts;
    page.trouble = news.trouble;
}

fn changed<T: Clone + PartialEq>(old: &[T], new: &[T], key: impl Fn(&T) -> &String) -> Vec<T> {
    let before: HashMap<&String, &T> = old.iter().map(|row| (key(row), row)).collect();
    let differs = |row: &&T| before.get(key(row)).is_none_or(|other| *other != *row);
    new.iter().filter(differs).cloned().collect()
}

fn merge_rows<T>(page: &mut Vec<T>, news: Vec<T>, limit: usize, key: impl Fn(&T) -> &String) {
    let mut fresh = Vec::new();
    for row in news {
        match page.iter_mut().find(|other| key(other) == key(&row)) {
            Some(old) => *old = row,
            None => fresh.push(row),
        }
    }
    page.splice(0..0, fresh);
    page.truncate(limit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Counts;

    fn page(rows: &[(&str, &str)]) -> Status {
        let row = |(bundle, state): &(&str, &str)| serde_json::json!({ "path": bundle, "bundle": bundle, "sha256": "", "size": 0, "state": state, "recipients": [] });
        let rows: Vec<_> = rows.iter().map(row).collect();
        let status = serde_json::json!({
            "version": "", "id": "", "name": "", "group": "", "mountpoint": "", "state": "", "pid": 1, "listen": [],
            "peers": [], "outbound": rows, "inbound": [], "incomplete": [], "counts": Counts::default(),
        });
        serde_json::from_value(status).unwrap()
    }

    fn shown(page: &Status) -> Vec<(&str, &str)> {
        let rows = page.outbound.iter();
        rows.map(|row| (row.bundle.as_str(), row.state.word()))
            .collect()
    }

    #[test]
    fn only_rows_that_differ_are_news_and_bring_a_page_up_to_date() {
        let old = page(&[("b", "queued"), ("a", "delivered")]);
        assert_eq!(news(&old, &old), None);
        let new = page(&[("c", "queued"), ("b", "sending"), ("a", "delivered")]);
        let told = news(&old, &new).unwrap();
        assert_eq!(told.outbound.len(), 2);
        let mut kept = old.clone();
        merge(&mut kept, told.clone(), 10);
        assert_eq!(shown(&kept), shown(&new));
        let mut short = old;
        merge(&mut short, told, 2);
        assert_eq!(shown(&short), [("c", "queued"), ("b", "sending")]);
        let mut trouble = new.clone();
        trouble.trouble = Some("disk".into());
        assert_eq!(
            news(&new, &trouble).unwrap().trouble.as_deref(),
            Some("disk")
        );
    }
}
