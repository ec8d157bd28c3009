//! What the members of etcd say, judged.

use std::collections::BTreeSet;

use jump_doctor::Finding;

use crate::store::etcd::{Inspected, MemberStatus};
use crate::store::group::READ_KEYS_MAX;

/// The oldest release that is supported.
const OLDEST: (u64, u64) = (3, 4);
/// What etcd takes for `--quota-backend-bytes` where nothing is set; members before 3.6 do not tell theirs.
const QUOTA_DEFAULT: u64 = 2 << 30;
/// The share of the quota from which on its end is near, in percent.
const QUOTA_NEAR: u64 = 80;

/// Judges what the endpoints answered.
pub(super) fn judge(inspected: &[Inspected]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = inspected.iter().map(answer).collect();
    let members: Vec<(&str, &MemberStatus)> = inspected
        .iter()
        .filter_map(|one| one.member.as_ref().ok().map(|member| (one.endpoint.as_str(), member)))
        .collect();
    if !members.is_empty() {
        findings.push(one_cluster(&members));
        findings.push(versions(&members));
        findings.extend(members.iter().map(|(endpoint, member)| room(endpoint, member)));
        findings.push(alarms(&members));
        findings.push(requests(&members));
    }
    findings
}

fn answer(one: &Inspected) -> Finding {
    match &one.member {
        Ok(member) if member.has_leader => {
            Finding::fine("store", format!("{} answers: etcd {}", one.endpoint, member.version))
        }
        Ok(_) => Finding::problem(
            "store",
            format!("{} answers, but knows no leader", one.endpoint),
            "bring up a majority of the members, and look at the network between them",
        ),
        Err(error) => Finding::problem(
            "store",
            format!("{} does not answer: {error}", one.endpoint),
            "start etcd, or correct store.endpoints, store.ca, the credentials and the network between",
        ),
    }
}

fn one_cluster(members: &[(&str, &MemberStatus)]) -> Finding {
    let clusters: BTreeSet<u64> = members.iter().map(|(_, member)| member.cluster).collect();
    if clusters.len() > 1 {
        return Finding::problem(
            "store-cluster",
            format!("the endpoints belong to {} clusters: sessions would have two owners", clusters.len()),
            "name the members of one cluster in store.endpoints",
        );
    }
    Finding::fine("store-cluster", "the endpoints that answer belong to one cluster")
}

fn versions(members: &[(&str, &MemberStatus)]) -> Finding {
    let releases: BTreeSet<&str> = members.iter().map(|(_, member)| member.version.as_str()).collect();
    let seen = format!("etcd {}", releases.iter().copied().collect::<Vec<_>>().join(", "));
    let minors: BTreeSet<Option<(u64, u64)>> = releases.iter().map(|release| minor(release)).collect();
    if minors.iter().any(|minor| minor.is_none_or(|minor| minor < OLDEST)) {
        return Finding::problem("store-version", seen, "use etcd 3.4 or newer");
    }
    if minors.len() > 1 {
        return Finding::warning(
            "store-version",
            format!("{seen}: the members differ"),
            "finish the upgrade of etcd",
        );
    }
    Finding::fine("store-version", seen)
}

/// The first two numbers of a release.
fn minor(release: &str) -> Option<(u64, u64)> {
    let mut numbers = release.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn room(endpoint: &str, member: &MemberStatus) -> Finding {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let quota = member.quota_bytes.unwrap_or(QUOTA_DEFAULT);
    let told = if member.quota_bytes.is_some() {
        "its quota"
    } else {
        "etcd's default quota (it does not tell its own)"
    };
    let seen = format!(
        "{endpoint} holds {} MiB ({} in use) of {} MiB, {told}",
        mib(member.file_bytes),
        mib(member.used_bytes),
        mib(quota)
    );
    if u128::from(member.file_bytes) * 100 < u128::from(quota) * u128::from(QUOTA_NEAR) {
        return Finding::fine("store-room", seen);
    }
    let fix =
        "compact and defragment etcd, or raise --quota-backend-bytes: at its end control can write nothing";
    Finding::warning("store-room", seen, fix)
}

fn alarms(members: &[(&str, &MemberStatus)]) -> Finding {
    // Each member tells the alarms of all. That there is no leader is said elsewhere.
    let errors: BTreeSet<&str> =
        members.iter().flat_map(|(_, member)| member.errors.iter().map(String::as_str)).collect();
    let errors: Vec<&str> = errors.into_iter().filter(|error| !error.contains("no leader")).collect();
    let raised = |name: &str| errors.iter().any(|error| error.contains(name));
    if raised("CORRUPT") {
        let fix = "replace that member: etcdctl alarm list names it";
        return Finding::problem("store-alarms", "the data of a member is corrupt (CORRUPT)", fix);
    }
    if raised("NOSPACE") {
        let fix = "compact and defragment etcd, then etcdctl alarm disarm";
        return Finding::problem("store-alarms", "a member is full (NOSPACE): etcd takes no writes", fix);
    }
    if !errors.is_empty() {
        return Finding::warning("store-alarms", errors.join("; "), "look at etcd's log");
    }
    Finding::fine("store-alarms", "no alarm is raised")
}

fn requests(members: &[(&str, &MemberStatus)]) -> Finding {
    // Without a leader nothing is answered, and the leader is what is missing.
    for (endpoint, member) in members.iter().filter(|(_, member)| member.has_leader) {
        if let Err(error) = &member.largest_request {
            let seen = format!("{endpoint} refuses a read of {READ_KEYS_MAX} keys: {error}");
            let fix = if error.contains("too many operations") {
                "start etcd with --max-txn-ops=1024 (at least 128, its default)"
            } else {
                "let store.user read and write /jump/, and look at etcd's log"
            };
            return Finding::problem("store-requests", seen, fix);
        }
    }
    Finding::fine(
        "store-requests",
        format!("requests of {READ_KEYS_MAX} operations are taken (--max-txn-ops)"),
    )
}

#[cfg(test)]
mod tests {
    use jump_doctor::Level;

    use super::*;

    fn healthy() -> MemberStatus {
        MemberStatus {
            cluster: 1,
            version: "3.5.9".to_owned(),
            has_leader: true,
            file_bytes: 10 << 20,
            used_bytes: 5 << 20,
            quota_bytes: Some(8 << 30),
            errors: Vec::new(),
            largest_request: Ok(()),
        }
    }

    /// The findings that are not fine, of one healthy member and of this one.
    fn wrong(change: impl FnOnce(&mut MemberStatus)) -> Vec<(&'static str, Level)> {
        let mut changed = healthy();
        change(&mut changed);
        let inspected = [healthy(), changed]
            .map(|member| Inspected { endpoint: "http://e:2379".to_owned(), member: Ok(member) });
        let findings = judge(&inspected);
        for finding in &findings {
            assert_eq!(finding.fix.is_empty(), finding.level == Level::Fine, "{finding:?}");
        }
        findings
            .iter()
            .filter(|finding| finding.level != Level::Fine)
            .map(|finding| (finding.check, finding.level))
            .collect()
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_member_is_found_and_nothing_else() {
        use Level::{Problem, Warning};
        assert_eq!(wrong(|_| {}), []);
        let leaderless = |member: &mut MemberStatus| {
            member.has_leader = false;
            member.errors = vec!["etcdserver: no leader".to_owned()];
            member.largest_request = Err("no answer within 2s".to_owned());
        };
        assert_eq!(wrong(leaderless), [("store", Problem)]);
        assert_eq!(wrong(|member| member.cluster = 2), [("store-cluster", Problem)]);
        assert_eq!(wrong(|member| member.version = "3.3.25".to_owned()), [("store-version", Problem)]);
        assert_eq!(wrong(|member| member.version = "nightly".to_owned()), [("store-version", Problem)]);
        assert_eq!(wrong(|member| member.version = "3.6.1".to_owned()), [("store-version", Warning)]);
        assert_eq!(wrong(|member| member.version = "3.5.21".to_owned()), []);
        assert_eq!(wrong(|member| member.file_bytes = 7 << 30), [("store-room", Warning)]);
        assert_eq!(wrong(|member| member.file_bytes = 6 << 30), []);
        // Without a quota, etcd's default counts.
        let without = |bytes| wrong(move |member| (member.quota_bytes, member.file_bytes) = (None, bytes));
        assert_eq!(
            (without(1 << 30), without((1 << 30) + (7 << 27))),
            (vec![], vec![("store-room", Warning)])
        );
        let alarm = |text: &str| wrong(|member| member.errors = vec![text.to_owned()]);
        assert_eq!(alarm("memberID:1 alarm:NOSPACE "), [("store-alarms", Problem)]);
        assert_eq!(alarm("memberID:1 alarm:CORRUPT "), [("store-alarms", Problem)]);
        assert_eq!(alarm("something new"), [("store-alarms", Warning)]);
        let refusal = Err("etcdserver: too many operations in txn request".to_owned());
        assert_eq!(wrong(|member| member.largest_request = refusal), [("store-requests", Problem)]);
    }

    #[test]
    fn an_endpoint_that_does_not_answer_is_a_problem_of_its_own() {
        let gone = Inspected { endpoint: "http://e:2379".to_owned(), member: Err("refused".to_owned()) };
        let findings = judge(&[gone]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].check, findings[0].level), ("store", Level::Problem));
    }
}
