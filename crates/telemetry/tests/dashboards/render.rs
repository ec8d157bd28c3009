//! How a dashboard becomes what Grafana imports.

use serde_json::{Value, json};

/// What a panel looks like.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Look {
    Lines,
    Stacked,
    Number,
    Heatmap,
}

pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// What a reader learns from it.
    pub(crate) about: &'static str,
    pub(crate) look: Look,
    /// A Grafana unit.
    pub(crate) unit: &'static str,
    /// Queries and the names of their series.
    pub(crate) queries: &'static [(&'static str, &'static str)],
}

pub(crate) struct Dashboard {
    pub(crate) uid: &'static str,
    pub(crate) title: &'static str,
    pub(crate) panels: &'static [Panel],
}

pub(crate) const fn panel(
    title: &'static str,
    look: Look,
    unit: &'static str,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, look, unit, queries }
}

impl Dashboard {
    pub(crate) fn render(&self) -> Value {
        let mut panels = Vec::new();
        let (mut x, mut y) = (0, 0);
        for (id, panel) in self.panels.iter().enumerate() {
            let (width, height) = if panel.look == Look::Number { (6, 4) } else { (12, 8) };
            if x + width > 24 {
                (x, y) = (0, y + height);
            }
            panels.push(panel.render(id + 1, json!({ "x": x, "y": y, "w": width, "h": height })));
            x += width;
            if x == 24 {
                (x, y) = (0, y + height);
            }
        }
        let variable = json!({
            "name": "instance", "label": "Gateway", "type": "query", "datasource": source(),
            "query": { "query": "label_values(jump_gateway_sessions, instance)", "refId": "instances" },
            "refresh": 2, "includeAll": true, "multi": true, "allValue": ".*",
            "current": { "selected": true, "text": ["All"], "value": ["$__all"] },
        });
        json!({
            "uid": self.uid, "title": self.title, "tags": ["jumping-vpn"], "schemaVersion": 39, "version": 1,
            "editable": true, "graphTooltip": 1, "refresh": "10s", "timezone": "",
            "time": { "from": "now-1h", "to": "now" },
            "templating": { "list": [
                { "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": { "selected": false, "text": "default", "value": "default" } },
                variable,
            ] },
            "links": [{
                "title": "Jumping VPN", "type": "dashboards", "tags": ["jumping-vpn"], "asDropdown": true,
                "keepTime": true, "includeVars": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
            }],
            "annotations": { "list": [] },
            "panels": panels,
        })
    }
}

impl Panel {
    fn render(&self, id: usize, place: Value) -> Value {
        let (kind, options) = match self.look {
            Look::Lines | Look::Stacked => (
                "timeseries",
                json!({
                    "legend": { "displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"] },
                    "tooltip": { "mode": "multi", "sort": "desc" },
                }),
            ),
            Look::Number => (
                "stat",
                json!({
                    "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                    "graphMode": "area", "colorMode": "value", "justifyMode": "auto", "textMode": "auto", "orientation": "auto",
                }),
            ),
            Look::Heatmap => (
                "heatmap",
                json!({
                    "calculate": false, "cellGap": 1, "color": { "mode": "scheme", "scheme": "Oranges", "steps": 64 },
                    "yAxis": { "unit": self.unit }, "tooltip": { "mode": "single", "yHistogram": true }, "legend": { "show": true },
                }),
            ),
        };
        let stacking = if self.look == Look::Stacked { "normal" } else { "none" };
        let fill = if self.look == Look::Stacked { 30 } else { 5 };
        let custom = json!({ "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "stacking": { "mode": stacking, "group": "A" } });
        let defaults = if kind == "timeseries" {
            json!({ "unit": self.unit, "min": 0, "custom": custom })
        } else {
            json!({ "unit": self.unit })
        };
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..)
            .map(|((query, legend), letter)| {
                let format = if self.look == Look::Heatmap { "heatmap" } else { "time_series" };
                json!({
                    "refId": letter.to_string(), "datasource": source(), "expr": query, "legendFormat": legend,
                    "format": format, "editorMode": "code", "range": true, "instant": false,
                })
            })
            .collect();
        json!({
            "id": id, "title": self.title, "description": self.about, "type": kind, "datasource": source(),
            "gridPos": place, "fieldConfig": { "defaults": defaults, "overrides": [] }, "options": options, "targets": targets,
        })
    }
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}
