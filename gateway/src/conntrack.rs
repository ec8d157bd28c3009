//! The kernel's connection tracking table (ctnetlink): which flows of which device it translates.
//!
//! [`message`] reads what the kernel says, without a socket; here is the socket, and the thread that answers the data
//! plane's questions. Needs CAP_NET_ADMIN. Where the table cannot be read no flow is anchored, and nothing else changes.

pub(crate) mod message;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::context::Orders;
use crate::dataplane::{Command, FLOWS_MAX, Flow, FlowAnswer, FlowQuestion};
use message::{Entry, Message, Wanted, messages, request, wanted};

/// Questions that wait for the thread; beyond it sessions leave without anchors.
pub const QUESTIONS_MAX: usize = 4096;
/// Questions that are answered by one look at the table.
const BATCH_MAX: usize = 512;
/// Addresses of IPv4 for which the kernel is asked one by one: it goes through its table for each, but tells only what belongs to it.
const SINGLE_MAX: usize = 4;
/// Longest time of one look. The next owner waits only somewhat longer ([`LIST_WAIT`](crate::dataplane::LIST_WAIT)).
pub(crate) const LOOK_MAX: Duration = Duration::from_millis(100);
/// The same of a node that drains and has nothing else to do.
const DRAIN_LOOK_MAX: Duration = Duration::from_secs(1);
/// A datagram of the kernel has 32 KiB at most.
const DATAGRAM_MAX: usize = 64 * 1024;
/// Time between two complaints about the same thing.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// Answers questions until nobody asks any more or the data plane has ended.
pub fn answer(questions: &Receiver<FlowQuestion>, orders: &Orders) {
    let mut complained: Option<Instant> = None;
    while let Ok(first) = questions.recv() {
        let batch: Vec<FlowQuestion> =
            std::iter::once(first).chain(questions.try_iter().take(BATCH_MAX - 1)).collect();
        let (answers, problem) = ask(&batch);
        if let Some(error) = problem
            && complained.is_none_or(|at| at.elapsed() >= COMPLAIN_AGAIN)
        {
            complained = Some(Instant::now());
            tracing::warn!(%error, "cannot read all of the connection tracking table: flows of sessions that leave are not anchored here");
        }
        if orders.give_blocking(Command::Flows(answers)).is_err() {
            return;
        }
    }
}

/// How many flows of these devices are open: TCP that neither side has finished, and others that have gone on for a while.
/// A table too large for the time counts as far as it was read, and for one open flow at least: the rest is unknown.
///
/// # Errors
/// The kernel's answer.
pub fn open_flows(addresses: &[IpAddr]) -> io::Result<usize> {
    let devices: HashSet<IpAddr> = addresses.iter().copied().collect();
    let mut open = 0;
    let looked = look(addresses, DRAIN_LOOK_MAX, &mut |entry| {
        open += usize::from(entry.is_open() && devices.contains(&entry.source));
    });
    counted(open, looked)
}

fn counted(open: usize, looked: io::Result<()>) -> io::Result<usize> {
    match looked {
        Ok(()) => Ok(open),
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            Ok(open.max(1))
        }
        Err(error) => Err(error),
    }
}

/// What the kernel says to `batch`, and what was wrong with it.
fn ask(batch: &[FlowQuestion]) -> (Vec<FlowAnswer>, Option<io::Error>) {
    let mut found: Vec<Found> = batch.iter().map(|_| Found::default()).collect();
    let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
    for (at, question) in batch.iter().enumerate() {
        by_address.extend(question.inner.iter().map(|address| (address, at)));
    }
    let addresses: Vec<IpAddr> = by_address.keys().copied().collect();
    let looked = look(&addresses, LOOK_MAX, &mut |entry| {
        if let Some(at) = by_address.get(&entry.source) {
            found[*at].take(&entry);
        }
    });
    let is_whole = looked.is_ok();
    let answer = |(question, found): (&FlowQuestion, Found)| FlowAnswer {
        session: question.session,
        epoch: question.epoch,
        flows: found.flows(),
        is_whole,
    };
    (batch.iter().zip(found).map(answer).collect(), looked.err())
}

/// Flows of one session. TCP comes first where there are too many: it breaks without its address.
#[derive(Debug, Default)]
struct Found {
    tcp: Vec<Flow>,
    others: Vec<Flow>,
}

impl Found {
    fn take(&mut self, entry: &Entry) {
        let flows = if entry.is_tcp() { &mut self.tcp } else { &mut self.others };
        if entry.can_go_on() && flows.len() < FLOWS_MAX {
            flows.push(entry.flow);
        }
    }

    fn flows(self) -> Vec<Flow> {
        let mut flows = self.tcp;
        flows.extend(self.others);
        flows.truncate(FLOWS_MAX);
        flows
    }
}

/// Looks at the table for `longest` at most; what was seen before an error counts.
fn look(addresses: &[IpAddr], longest: Duration, each: &mut dyn FnMut(Entry)) -> io::Result<()> {
    let deadline = Instant::now() + longest;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    wanted(addresses, SINGLE_MAX).into_iter().try_for_each(|wanted| dump(&socket, wanted, deadline, each))
}

fn dump(
    socket: &impl std::os::fd::AsFd,
    wanted: Wanted,
    deadline: Instant,
    each: &mut dyn FnMut(Entry),
) -> io::Result<()> {
    send(socket, &request(wanted), SendFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_socket_timeout(socket, Timeout::Recv, Some(left))?;
        let (len, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        for message in messages(&buffer[..len]) {
            match message {
                Message::Entry(entry) => each(entry),
                Message::Done => return Ok(()),
                Message::Failed(code) => return Err(io::Error::from_raw_os_error(code)),
                Message::Other => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jump_crypto::ids::{Epoch, SessionId};

    use super::*;
    use crate::dataplane::Inner;

    #[test]
    fn of_too_many_flows_those_over_tcp_are_kept() {
        let entry = |protocol, port: u16| Entry {
            source: IpAddr::from([10, 64, 0, 1]),
            flow: Flow::new(protocol, port, IpAddr::from([192, 0, 2, 1]), 443).unwrap(),
            status: 0x1e,
            tcp_state: 3,
        };
        let mut found = Found::default();
        for port in 0..FLOWS_MAX as u16 {
            found.take(&entry(17, port));
            found.take(&entry(6, port));
        }
        let flows = found.flows();
        assert_eq!(flows.len(), FLOWS_MAX);
        assert!(flows.iter().all(|flow| flow.protocol == 6));
    }

    #[test]
    fn a_table_that_was_not_read_to_its_end_leaves_flows_open_and_one_that_cannot_be_read_says_nothing() {
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert_eq!(counted(0, Ok(())).unwrap(), 0);
        assert_eq!(counted(0, error(io::ErrorKind::TimedOut)).unwrap(), 1);
        assert_eq!(counted(7, error(io::ErrorKind::WouldBlock)).unwrap(), 7);
        assert!(counted(7, error(io::ErrorKind::PermissionDenied)).is_err());
    }

    #[test]
    fn a_look_without_time_ends_as_one_that_ran_out_of_it() {
        let looked = look(&[IpAddr::from([198, 18, 255, 1])], Duration::ZERO, &mut |_| panic!("an entry"));
        assert_eq!(looked.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    /// Root or not, with conntrack or without.
    #[test]
    fn whatever_the_kernel_says_every_question_is_answered() {
        let question = |n: u8| FlowQuestion {
            session: SessionId::from_bytes([n; 16]),
            epoch: Epoch(1),
            inner: Inner::new([IpAddr::from([198, 18, 255, n])]),
        };
        for count in [1, 100] {
            let batch: Vec<_> = (0..count).map(question).collect();
            let (answers, problem) = ask(&batch);
            assert_eq!(answers.len(), batch.len());
            for (question, answer) in batch.iter().zip(&answers) {
                assert_eq!((answer.session, answer.flows.len()), (question.session, 0));
                assert_eq!(answer.is_whole, problem.is_none());
            }
        }
    }
}
