//! The streams of bindings: news in their order, a snapshot after every break.

use jump_session::ids::NodeId;
use jump_session::ownership::SessionRecord;

use crate::event::Event;
use crate::store::{News, NodeKey};
use crate::world::{MS, TTL, World};

impl World {
    /// Tells every gateway's stream what changed in the store.
    pub(crate) fn spread_news(&mut self) {
        if self.store.news.is_empty() {
            return;
        }
        let news = std::mem::take(&mut self.store.news);
        let mut records = Vec::new();
        let mut nodes = Vec::new();
        for item in &news {
            match item {
                News::Session(id) => {
                    records.extend(self.store.sessions.get(id).map(|(record, _)| record.clone()))
                }
                News::Node(node) => {
                    let key = self.store.nodes.get(node).cloned();
                    if key.is_some() {
                        self.push(TTL, Event::LeaseCheck { node: node.clone() });
                    }
                    nodes.push((node.clone(), key));
                }
            }
        }
        for record in &records {
            self.note(|_| format!("store: epoch {} #{} {:?}", record.epoch, record.attach_seq, record.phase));
        }
        for at in 0..self.gateways.len() {
            if self.gateways[at].run.is_some() && !self.gateways[at].is_stream_broken {
                self.push_stream(at, false, records.clone(), nodes.clone());
            }
        }
    }

    fn push_stream(
        &mut self,
        at: usize,
        is_snapshot: bool,
        records: Vec<SessionRecord>,
        nodes: Vec<(NodeId, Option<NodeKey>)>,
    ) {
        let delay = self.latency() + self.random.between(0, 5 * MS);
        let arrival = (self.now + delay).max(self.gateways[at].stream_until + 1);
        self.gateways[at].stream_until = arrival;
        let boot = self.gateways[at].boot;
        self.push(arrival - self.now, Event::Stream { at, boot, is_snapshot, records, nodes });
    }

    pub(crate) fn open_stream(&mut self, at: usize) {
        let boot = self.gateways[at].boot;
        if self.gateways[at].run.is_none() || !self.gateways[at].is_stream_broken {
            return;
        }
        if self.gateways[at].is_cut_from_control || self.replicas.iter().all(|replica| replica.is_down) {
            return self.push(100 * MS, Event::OpenStream { at, boot });
        }
        self.gateways[at].is_stream_broken = false;
        let records = self.store.sessions.values().map(|(record, _)| record.clone()).collect();
        let nodes: Vec<(NodeId, Option<NodeKey>)> = self
            .gateways
            .iter()
            .map(|gateway| (gateway.node.clone(), self.store.nodes.get(&gateway.node).cloned()))
            .collect();
        self.push_stream(at, true, records, nodes);
    }
}
