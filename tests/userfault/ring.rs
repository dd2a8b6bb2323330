//! A process with something to lose: a ring of nodes, one to a page, in no order of addresses, of which it has counted some when its memory is
//! saved. Its successor has that memory at the same addresses, follows the pointers and counts on.

use std::{fs, thread, time::Duration};

use podsnap::{SnapshotId, Store};
use rustix::process::{Signal, kill_process};

use crate::{
    HugePages, MIB, Served,
    guest::{GAP, Guest, HUGE, Memory, NOWHERE, PAGE, Shape, can_serve},
    support::{Noise, tool::*},
};

const WORDS: usize = PAGE / 8;
const NEXT: usize = 0;
const COUNT: usize = 1;

/// Where the ring is in both processes: an address that nothing else has.
const START: usize = 0x5e00_0000_0000;

pub struct Ring<'a> {
    memory: &'a Memory,
    /// Pages in the order of the ring.
    order: Vec<usize>,
}

impl<'a> Ring<'a> {
    pub fn of(memory: &'a Memory) -> Self {
        let mut order: Vec<usize> = (0..memory.shape.len / PAGE).collect();
        let mut noise = Noise(17);
        for i in (1..order.len()).rev() {
            order.swap(i, noise.below(i + 1));
        }
        Self { memory, order }
    }

    fn address(&self, place: usize) -> *mut u64 {
        let page = self.order[place % self.order.len()];
        self.memory.at(page * PAGE).cast()
    }

    /// What the node at a place of the ring is, once it was counted so often.
    fn node(&self, place: usize, count: u64) -> [u64; WORDS] {
        let mut noise = Noise(place as u64);
        let mut node = std::array::from_fn(|_| noise.word());
        node[NEXT] = self.address(place + 1).expose_provenance() as u64;
        node[COUNT] = count;
        node
    }

    /// Makes the ring, and counts that many of its nodes.
    pub fn make(&self, counted: usize) -> Option<String> {
        for place in 0..self.order.len() {
            let node = self.node(place, u64::from(place < counted));
            // SAFETY: a page of the memory, which is this process's.
            unsafe { self.address(place).cast::<[u64; WORDS]>().write(node) };
        }
        None
    }

    /// Walks on from many places at once, counting every node; some of them were counted before.
    pub fn walk(&self, counted: usize, threads: usize) -> Option<String> {
        let share = self.order.len().div_ceil(threads);
        thread::scope(|scope| {
            let walkers: Vec<_> = (0..threads)
                .map(|number| {
                    let first = number * share;
                    let places = first..(first + share).min(self.order.len());
                    let start = self.address(first).expose_provenance();
                    scope.spawn(move || {
                        let mut address = start;
                        for place in places {
                            // SAFETY: where a node says that the next one is.
                            let node: &mut [u64; WORDS] =
                                unsafe { &mut *std::ptr::with_exposed_provenance_mut(address) };
                            if *node != self.node(place, u64::from(place < counted)) {
                                return Some(format!("the node at place {place} is another"));
                            }
                            node[COUNT] += 1;
                            address = node[NEXT] as usize;
                        }
                        None
                    })
                })
                .collect();
            walkers
                .into_iter()
                .find_map(|walker| walker.join().unwrap())
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_runs_on_in_its_memory() {
    if can_serve() {
        runs_on(PAGE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_runs_on_in_its_huge_pages() {
    if can_serve()
        && let Some(_pages) = HugePages::new((16 * MIB + GAP) / HUGE)
    {
        runs_on(HUGE).await;
    }
}

async fn runs_on(page_size: usize) {
    let mut shape = Shape::new(16 * MIB);
    // Where two tests do not meet.
    shape.start = START + page_size * 0x1000;
    shape.page_size = page_size;
    let tool = Tool::new();
    let mut first = Guest::start(NOWHERE.as_ref(), shape);
    first.does("ring 1500");
    kill_process(first.pid(), Signal::STOP).unwrap();
    let stat = format!("/proc/{}/stat", first.pid().as_raw_nonzero());
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        thread::sleep(Duration::from_millis(1));
    }
    tool.save(
        "s",
        &[&format!("memory=pid:{}", first.pid().as_raw_nonzero())],
    );
    drop(first);

    // Where its addresses are in the section.
    let store = Store::open(tool.path("store").to_str().unwrap()).unwrap();
    let snapshot = store
        .snapshot(&"s".parse::<SnapshotId>().unwrap())
        .await
        .unwrap();
    let start = shape.start as u64;
    let ranges = &snapshot.sections()[0].address_ranges;
    let range = ranges
        .iter()
        .find(|r| (r.start..r.start + r.length).contains(&start))
        .unwrap();
    shape.offset = (range.section_offset + (start - range.start)) as usize;

    let served = Served { tool, server: None }.serve(&[]);
    let mut second = served.guest(shape);
    second.does("walk 1500 4");
    served.end();
}
