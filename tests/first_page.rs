//! From a cold store to a page of a large section in three small reads: the end of the manifest, a piece of the extent map, a frame.

mod support;

use std::sync::Arc;

use podsnap::{
    Input, NewSection, Role, SaveOptions,
    format::FRAME_HEADER_LEN,
    source::Source,
    store::{Backend, LocalBackend},
};
use support::{
    backend::{Fate, Watched},
    pages::Pages,
    *,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_takes_three_reads_of_at_most_256_kib() {
    let len: u64 = if long_tests() { 8 << 30 } else { 256 << 20 };
    let pages = Arc::new(Pages::new(len));
    let dir = tempfile::tempdir().unwrap();
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(dir.path(), false).unwrap());
    let watched = Watched::new(backend, |_, _| Fate::Done);
    let section = NewSection::blob(Role::Memory, "", Input::Source(pages.clone()));
    save(&watched.store(), "s", vec![section], SaveOptions::default())
        .await
        .unwrap();

    let mut random = Noise(1);
    let mut offsets = vec![0, len - 4096];
    offsets.extend((0..20).map(|_| random.below((len / 4096) as usize) as u64 * 4096));
    let mut four = 0;
    for offset in offsets {
        watched.take_reads();
        // Everything is opened anew: nothing is left in any cache of ours.
        let snapshot = watched.store().snapshot(&id("s")).await.unwrap();
        let (mut found, mut expected) = ([0; 4096], [0; 4096]);
        snapshot
            .reader(0)
            .read_at(&mut found, offset)
            .await
            .unwrap();
        let reads = watched.take_reads();
        pages.read_at(&mut expected, offset).unwrap();
        assert_bytes(&found, &expected, &format!("the page at {offset}"));
        assert!(offset > 0 || reads.len() <= 3, "the first page: {reads:?}");
        // A page may lie across the border of two chunks whose frames are not neighbours.
        assert!(reads.len() <= 4, "page at {offset}: {reads:?}");
        four += usize::from(reads.len() == 4);
        let longest = reads.iter().map(|(_, len)| *len).max().unwrap();
        assert!(
            longest <= (256 << 10) + FRAME_HEADER_LEN as u64,
            "page at {offset}: {reads:?}"
        );
    }
    assert!(four <= 3, "{four} of 22 pages took four reads");
}
