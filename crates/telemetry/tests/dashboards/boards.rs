//! The dashboards and their queries.

use crate::render::{Dashboard, Look, panel};

pub(crate) const DASHBOARDS: &[Dashboard] = &[
    Dashboard {
        uid: "jump-fleet",
        title: "Jumping VPN: fleet",
        panels: &[
            panel(
                "Sessions",
                Look::Number,
                "short",
                "Sessions carried by all gateways.",
                &[("sum(jump_gateway_sessions)", "sessions")],
            ),
            panel(
                "Gateways that may forward",
                Look::Number,
                "short",
                "Gateways whose lease holds.",
                &[("count(jump_gateway_authority_seconds > 0) or vector(0)", "gateways")],
            ),
            panel(
                "Traffic",
                Look::Number,
                "Bps",
                "Inner bytes in both directions.",
                &[("sum(rate(jump_gateway_packet_bytes_total[$__rate_interval]))", "traffic")],
            ),
            panel(
                "Attaches",
                Look::Number,
                "reqps",
                "Verdicts of control.",
                &[("sum(rate(jump_control_attach_total[$__rate_interval]))", "attaches")],
            ),
            panel(
                "Sessions per gateway",
                Look::Stacked,
                "short",
                "After a loss the others take over; the sum should come back.",
                &[("jump_gateway_sessions{instance=~\"$instance\"}", "{{instance}}")],
            ),
            panel(
                "Sessions by state",
                Look::Stacked,
                "short",
                "VOLATILE and DEGRADED clients have not been heard for 40 and 75 s; REATTACHING ones were asked to move.",
                &[("sum by (state) (jump_gateway_sessions_by_state{instance=~\"$instance\"})", "{{state}}")],
            ),
            panel(
                "Traffic per gateway",
                Look::Stacked,
                "Bps",
                "Inner bytes in both directions.",
                &[(
                    "sum by (instance) (rate(jump_gateway_packet_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
                    "{{instance}}",
                )],
            ),
            panel(
                "Authority left",
                Look::Lines,
                "s",
                "How long each gateway may forward without a renewal. A saw tooth well above zero is healthy.",
                &[("jump_gateway_authority_seconds{instance=~\"$instance\"}", "{{instance}}")],
            ),
            panel(
                "Mesh links",
                Look::Lines,
                "short",
                "Every gateway should have a link to every other.",
                &[("jump_gateway_mesh_links{instance=~\"$instance\"}", "{{instance}}")],
            ),
            panel(
                "Failed random generators",
                Look::Lines,
                "short",
                "Programs that make no keys because a generator failed its health tests.",
                &[("count(jump_entropy_healthy == 0) or vector(0)", "programs")],
            ),
            panel(
                "Observations lost",
                Look::Lines,
                "short",
                "Audit events, log lines and spans dropped per minute.",
                &[
                    (
                        "sum by (instance) (rate(jump_audit_events_dropped_total[$__rate_interval]) * 60)",
                        "audit queue {{instance}}",
                    ),
                    (
                        "sum by (instance, sink, cause) (rate(jump_audit_sink_events_dropped_total[$__rate_interval]) * 60)",
                        "{{sink}} {{cause}} {{instance}}",
                    ),
                    (
                        "sum by (instance) (rate(jump_log_lines_dropped_total[$__rate_interval]) * 60)",
                        "log {{instance}}",
                    ),
                    (
                        "sum by (instance, cause) (rate(jump_trace_spans_dropped_total[$__rate_interval]) * 60)",
                        "spans {{cause}} {{instance}}",
                    ),
                ],
            ),
            panel(
                "Audit events waiting",
                Look::Lines,
                "short",
                "In the queues of the sinks.",
                &[("jump_audit_sink_queue_events{instance=~\"$instance\"}", "{{sink}} {{instance}}")],
            ),
        ],
    },
    Dashboard {
        uid: "jump-continuity",
        title: "Jumping VPN: session continuity",
        panels: &[
            panel(
                "Accepted attaches by reason",
                Look::Stacked,
                "reqps",
                "Why sessions began or moved.",
                &[(
                    "sum by (reason) (rate(jump_control_attach_total{outcome=\"accepted\"}[$__rate_interval]))",
                    "{{reason}}",
                )],
            ),
            panel(
                "Rejected and failed attaches by reason",
                Look::Stacked,
                "reqps",
                "Why sessions could not move.",
                &[(
                    "sum by (outcome, reason) (rate(jump_control_attach_total{outcome!=\"accepted\"}[$__rate_interval]))",
                    "{{outcome}} {{reason}}",
                )],
            ),
            panel(
                "Time from confirmation to verdict",
                Look::Lines,
                "s",
                "The gateway's part of a recovery.",
                &[
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(jump_gateway_attach_seconds_bucket{outcome=\"accepted\"}[$__rate_interval])))",
                        "median",
                    ),
                    (
                        "histogram_quantile(0.95, sum by (le) (rate(jump_gateway_attach_seconds_bucket{outcome=\"accepted\"}[$__rate_interval])))",
                        "95 %",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(jump_gateway_attach_seconds_bucket{outcome=\"accepted\"}[$__rate_interval])))",
                        "99 %",
                    ),
                ],
            ),
            panel(
                "Recovery: median by cause and phase",
                Look::Lines,
                "s",
                "How long each phase takes. Gateways measure commits; clients that are scraped, every phase.",
                &[(
                    "histogram_quantile(0.5, sum by (cause, phase, le) (rate(jump_session_recovery_seconds_bucket[$__rate_interval])))",
                    "{{cause}} {{phase}}",
                )],
            ),
            panel(
                "Recovery: 99 % by cause and phase",
                Look::Lines,
                "s",
                "The slowest in a hundred.",
                &[(
                    "histogram_quantile(0.99, sum by (cause, phase, le) (rate(jump_session_recovery_seconds_bucket[$__rate_interval])))",
                    "{{cause}} {{phase}}",
                )],
            ),
            panel(
                "Accepted attaches by duration",
                Look::Heatmap,
                "s",
                "Where the time of attaches lies.",
                &[(
                    "sum by (le) (increase(jump_gateway_attach_seconds_bucket{outcome=\"accepted\"}[$__rate_interval]))",
                    "{{le}}",
                )],
            ),
            panel(
                "Moves without an attach",
                Look::Lines,
                "ops",
                "Endpoints that moved inside an epoch, those refused, and key renewals.",
                &[(
                    "sum by (event) (rate(jump_gateway_events_total{event=~\"path_moves|path_moves_refused|rekeys\"}[$__rate_interval]))",
                    "{{event}}",
                )],
            ),
            panel(
                "Round trip of clients' paths",
                Look::Lines,
                "s",
                "Of the clients that are scraped: jump up --metrics-listen.",
                &[
                    ("quantile(0.5, jump_client_path_rtt_seconds >= 0)", "median"),
                    ("quantile(0.95, jump_client_path_rtt_seconds >= 0)", "95 %"),
                    ("max(jump_client_path_rtt_seconds >= 0)", "longest"),
                ],
            ),
            panel(
                "Loss on clients' paths",
                Look::Lines,
                "percentunit",
                "Of the clients that are scraped, the median and the worst, up and down.",
                &[
                    (
                        "quantile by (direction) (0.5, jump_client_path_loss_ratio >= 0)",
                        "median {{direction}}",
                    ),
                    ("max by (direction) (jump_client_path_loss_ratio >= 0)", "worst {{direction}}"),
                ],
            ),
            panel(
                "Clients by state and transport",
                Look::Stacked,
                "short",
                "Of the clients that are scraped.",
                &[
                    ("sum by (state) (jump_client_state)", "{{state}}"),
                    ("sum by (transport) (jump_client_path_transport)", "by {{transport}}"),
                ],
            ),
            panel(
                "Sessions ended by time",
                Look::Stacked,
                "ops",
                "Lifetime, recovery window, transport.",
                &[("sum by (reason) (rate(jump_control_expired_total[$__rate_interval]))", "{{reason}}")],
            ),
            panel(
                "Packets that waited for a move",
                Look::Lines,
                "pps",
                "Parked during handovers, and those that waited too long.",
                &[
                    ("sum(rate(jump_gateway_events_total{event=\"parked\"}[$__rate_interval]))", "parked"),
                    (
                        "sum by (reason) (rate(jump_gateway_packets_dropped_total{reason=~\"parking_full|parking_expired\"}[$__rate_interval]))",
                        "{{reason}}",
                    ),
                ],
            ),
            panel(
                "Hints to reattach",
                Look::Lines,
                "ops",
                "Records for sessions that a gateway does not know, answered with a hint.",
                &[(
                    "sum by (instance) (rate(jump_gateway_events_total{event=\"hints\"}[$__rate_interval]))",
                    "{{instance}}",
                )],
            ),
        ],
    },
    Dashboard {
        uid: "jump-ownership",
        title: "Jumping VPN: ownership",
        panels: &[
            panel(
                "Changes of owner",
                Look::Lines,
                "ops",
                "Accepted attaches per gateway that gained the session.",
                &[(
                    "sum by (instance) (rate(jump_gateway_attach_total{outcome=\"accepted\"}[$__rate_interval]))",
                    "{{instance}}",
                )],
            ),
            panel(
                "Fences by source",
                Look::Stacked,
                "ops",
                "Orders to stop a session: by the stream, or by a renewal when the stream was late.",
                &[("sum by (source) (rate(jump_gateway_fences_total[$__rate_interval]))", "{{source}}")],
            ),
            panel(
                "Lease renewals",
                Look::Lines,
                "ops",
                "Each gateway renews about once a second.",
                &[(
                    "sum by (instance, outcome) (rate(jump_gateway_lease_renewals_total{instance=~\"$instance\"}[$__rate_interval]))",
                    "{{instance}} {{outcome}}",
                )],
            ),
            panel(
                "Authority left",
                Look::Lines,
                "s",
                "At zero the gateway forwards nothing.",
                &[("jump_gateway_authority_seconds{instance=~\"$instance\"}", "{{instance}}")],
            ),
            panel(
                "Guard trips",
                Look::Lines,
                "short",
                "Times that the authority ran out, in the last ten minutes.",
                &[(
                    "increase(jump_gateway_events_total{event=\"guard_trips\", instance=~\"$instance\"}[10m])",
                    "{{instance}}",
                )],
            ),
            panel(
                "Packets refused by the guard or the owner check",
                Look::Lines,
                "pps",
                "What a gateway that is not, or no more, the owner did not forward.",
                &[(
                    "sum by (instance, reason) (rate(jump_gateway_packets_dropped_total{reason=~\"guard|not_owner|not_active\", instance=~\"$instance\"}[$__rate_interval]))",
                    "{{instance}} {{reason}}",
                )],
            ),
            panel(
                "Registrations",
                Look::Lines,
                "short",
                "New runs of gateways in the last ten minutes.",
                &[("sum(increase(jump_control_registrations_total[10m]))", "registrations")],
            ),
            panel(
                "Bindings stream restarts",
                Look::Lines,
                "short",
                "In the last ten minutes.",
                &[(
                    "increase(jump_gateway_watch_restarts_total{instance=~\"$instance\"}[10m])",
                    "{{instance}}",
                )],
            ),
        ],
    },
    Dashboard {
        uid: "jump-data-plane",
        title: "Jumping VPN: data plane",
        panels: &[
            panel(
                "Packets",
                Look::Lines,
                "pps",
                "Inner packets by direction.",
                &[(
                    "sum by (direction) (rate(jump_gateway_packets_total{instance=~\"$instance\"}[$__rate_interval]))",
                    "{{direction}}",
                )],
            ),
            panel(
                "Bytes",
                Look::Lines,
                "Bps",
                "Inner bytes by direction.",
                &[(
                    "sum by (direction) (rate(jump_gateway_packet_bytes_total{instance=~\"$instance\"}[$__rate_interval]))",
                    "{{direction}}",
                )],
            ),
            panel(
                "Drops by reason",
                Look::Stacked,
                "pps",
                "Datagrams and packets that were not forwarded.",
                &[(
                    "sum by (reason) (rate(jump_gateway_packets_dropped_total{instance=~\"$instance\"}[$__rate_interval])) > 0",
                    "{{reason}}",
                )],
            ),
            panel(
                "Mean packet size",
                Look::Lines,
                "bytes",
                "Small packets cost as much work as large ones.",
                &[(
                    "sum by (direction) (rate(jump_gateway_packet_bytes_total{instance=~\"$instance\"}[$__rate_interval])) / sum by (direction) (rate(jump_gateway_packets_total{instance=~\"$instance\"}[$__rate_interval]))",
                    "{{direction}}",
                )],
            ),
            panel(
                "Mesh",
                Look::Lines,
                "pps",
                "Packets and stray records relayed between gateways.",
                &[(
                    "sum by (event) (rate(jump_gateway_events_total{event=~\"relayed_out|relayed_in|strays_out|strays_in\", instance=~\"$instance\"}[$__rate_interval]))",
                    "{{event}}",
                )],
            ),
            panel(
                "Handshakes",
                Look::Lines,
                "ops",
                "First messages, answers, confirmations, verdicts and cookies.",
                &[(
                    "sum by (event) (rate(jump_gateway_events_total{event=~\"attach_inits|attach_replies|confirms|accepted|rejected|cookies\", instance=~\"$instance\"}[$__rate_interval]))",
                    "{{event}}",
                )],
            ),
            panel(
                "Receiver indices",
                Look::Lines,
                "short",
                "Sessions, handshakes and retired keys.",
                &[("jump_gateway_receiver_indices{instance=~\"$instance\"}", "{{instance}}")],
            ),
            panel(
                "Known inner addresses",
                Look::Lines,
                "short",
                "Inner addresses whose owner a gateway knows.",
                &[("jump_gateway_inner_routes{instance=~\"$instance\"}", "{{instance}}")],
            ),
        ],
    },
    Dashboard {
        uid: "jump-store",
        title: "Jumping VPN: control and store",
        panels: &[
            panel(
                "Attaches by outcome",
                Look::Stacked,
                "reqps",
                "Verdicts of control; failed ones got no answer from the store.",
                &[("sum by (outcome) (rate(jump_control_attach_total[$__rate_interval]))", "{{outcome}}")],
            ),
            panel(
                "Time to a verdict",
                Look::Lines,
                "s",
                "From an attach's arrival at control to its answer, waiting for a live owner included.",
                &[
                    (
                        "histogram_quantile(0.5, sum by (le, outcome) (rate(jump_control_attach_seconds_bucket[$__rate_interval])))",
                        "{{outcome}} median",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le, outcome) (rate(jump_control_attach_seconds_bucket[$__rate_interval])))",
                        "{{outcome}} 99 %",
                    ),
                ],
            ),
            panel(
                "Attaches by duration",
                Look::Heatmap,
                "s",
                "Where the time of attaches lies.",
                &[("sum by (le) (increase(jump_control_attach_seconds_bucket[$__rate_interval]))", "{{le}}")],
            ),
            panel(
                "Sessions released or ended by time",
                Look::Stacked,
                "ops",
                "What the sweep did, by reason.",
                &[("sum by (reason) (rate(jump_control_expired_total[$__rate_interval]))", "{{reason}}")],
            ),
            panel(
                "Registrations",
                Look::Lines,
                "short",
                "New runs of gateways in the last ten minutes.",
                &[("sum(increase(jump_control_registrations_total[10m]))", "registrations")],
            ),
            panel(
                "etcd: disk",
                Look::Lines,
                "s",
                "99 % of the log's and the backend's commits; above 25 ms attaches suffer.",
                &[
                    (
                        "histogram_quantile(0.99, sum by (le, instance) (rate(etcd_disk_wal_fsync_duration_seconds_bucket[$__rate_interval])))",
                        "wal {{instance}}",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le, instance) (rate(etcd_disk_backend_commit_duration_seconds_bucket[$__rate_interval])))",
                        "backend {{instance}}",
                    ),
                ],
            ),
            panel(
                "etcd: leader",
                Look::Lines,
                "short",
                "Changes of leader in the last hour, and members that see one.",
                &[
                    ("max(increase(etcd_server_leader_changes_seen_total[1h]))", "changes"),
                    ("sum(etcd_server_has_leader)", "members with a leader"),
                ],
            ),
            panel(
                "etcd: size",
                Look::Lines,
                "bytes",
                "Of the database.",
                &[("etcd_mvcc_db_total_size_in_bytes", "{{instance}}")],
            ),
        ],
    },
];
