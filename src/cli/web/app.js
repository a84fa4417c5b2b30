"use strict";
// Shows what the stream tells. Texts are set as text, never as HTML.

const byId = (id) => document.getElementById(id);
const dash = (value) => (value === null || value === undefined || value === "" ? "-" : String(value));
const number = (value) => (value === null || value === undefined ? "-" : value.toLocaleString("en"));
const MOST_SAMPLES = 3600;

function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${Math.floor((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

// The time, with the day if that is not today.
function moment(seconds) {
  const at = new Date(seconds * 1000);
  return at.toDateString() === new Date().toDateString() ? at.toLocaleTimeString() : at.toLocaleString();
}

function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

// Each cell is a text, or a pair of a text and a class.
function table(id, headers, rows) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of headers) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = name;
    head.append(th);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const tr = body.insertRow();
    for (const cell of row) {
      const [text, style] = Array.isArray(cell) ? cell : [cell, ""];
      const td = tr.insertCell();
      td.textContent = text;
      td.className = style;
    }
  }
  const none = document.createElement("p");
  none.textContent = "none";
  byId(id).replaceChildren(rows.length ? table : none);
}

const tone = (good, yes, no) => [good ? yes : no, good ? "good" : "bad"];

function showHealth(status) {
  const health = status.health;
  const element = byId("health");
  const what = health.troubles.length
    ? health.troubles.map((trouble) => `${trouble.reason} (${duration(trouble.since)})`).join("; ")
    : `good for ${duration(health.since)}`;
  element.textContent = (status.maintenance ? "MAINTENANCE: " : "") + what;
  element.className = status.maintenance ? "bad" : health.state;
  byId("node").textContent = `${status.node} · tandemgw ${status.version} · up ${duration(status.uptime_s)}`;
  document.title = `${status.node}: ${health.state}`;
}

function showUnits(status) {
  const roles = new Set(status.groups.map((group) => group.role));
  const own = [
    status.node, roles.size === 1 ? [...roles][0] : "several roles", dash(status.groups[0]?.priority),
    ["this unit", "good"], `${status.ports.filter((port) => port.up).length} of ${status.ports.length}`,
    status.version, dash(status.config?.checksum), "-",
  ];
  const peers = status.peers.map((peer) => [
    peer.name, dash(peer.role), dash(peer.priority),
    peer.maintenance ? ["MAINTENANCE", "bad"] : tone(peer.connected, peer.in_sync ? "in sync" : "not in sync", "not connected"),
    dash(peer.ports_up), dash(peer.version),
    peer.config?.equal === false ? ["DIFFERS", "bad"] : dash(peer.config?.checksum),
    number(peer.lag.would_be_lost),
  ]);
  const headers = ["Unit", "Role", "Priority", "State", "Ports up", "Version", "Config", "Would be lost"];
  table("units", headers, [own, ...peers]);
}

function showTables(data) {
  const status = data.status;
  table("groups", ["Group", "Role here", "Primary", "Term", "Ready", "Since"], status.groups.map((group) => [
    group.name, group.role, dash(group.primary), group.term, tone(group.ready, "ready", "not ready"), duration(group.since),
  ]));
  table("links", ["To", "Local", "Remote", "State", "RTT", "Carries"], status.peers.flatMap((peer) =>
    peer.links.map((link) => [
      peer.name, dash(link.local), dash(link.remote), tone(link.up, "up", "DOWN"),
      link.rtt_us === null ? "-" : `${link.rtt_us} µs`, link.carries_sync ? "sessions" : "-",
    ])));
  table("ports", ["Port", "Interface", "State", "In", "Out", "Targets"], status.ports.map((port) => [
    port.name, port.interface, tone(port.up && !port.fault, "up", port.fault ?? "DOWN"),
    bytes(port.in.bytes), bytes(port.out.bytes),
    (port.targets ?? []).map((target) => `${target.server} ${target.state ?? "unknown"}`).join(", ") || "-",
  ]));
  table("hosts", ["Host", "Sessions", "Half-open", "Ports"], data.hosts.map((host) => [
    host.source, number(host.sessions), number(host.half_open), number(host.ports),
  ]));
  table("policies", ["Policy", "Action", "Hits", "Sessions", "Bytes", "Last hit"], data.policies.map((policy) => [
    policy.name ?? "(no policy matches)", policy.action, number(policy.hits), number(policy.sessions), bytes(policy.bytes),
    policy.last_hit_s === null ? "-" : `${duration(policy.last_hit_s)} ago`,
  ]));
  const drops = Object.entries(status.counters.dropped).sort((a, b) => b[1] - a[1]);
  table("drops", ["Reason", "Packets"], drops.map(([reason, count]) => [reason, number(count)]));
  table("events", ["When", "Event", "What"], data.events.map((event) => [
    moment(event.at), [event.id, event.severity],
    event.why ? `${event.what} (${event.why})` : event.what,
  ]));
}

const samples = [];
let before = null;

function showTraffic(status) {
  const now = { at: Date.now(), packets: status.counters.forwarded, uptime: status.uptime_s };
  if (before && now.uptime >= before.uptime && now.at > before.at) {
    samples.push(((now.packets - before.packets) * 1000) / (now.at - before.at));
    if (samples.length > MOST_SAMPLES) samples.shift();
  }
  before = now;
  const sessions = status.sessions;
  byId("sessions").textContent =
    `${number(sessions.total)} of ${number(sessions.max)} sessions: tcp ${number(sessions.tcp)}, udp ${number(sessions.udp)}, icmp ${number(sessions.icmp)}`;
  const last = samples.at(-1);
  byId("rate").textContent = last === undefined ? "" : `${number(Math.round(last))} packets/s, over the last ${duration(samples.length)}`;
  const canvas = byId("graph");
  const context = canvas.getContext("2d");
  const top = Math.max(1, ...samples);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = getComputedStyle(document.body).color;
  context.beginPath();
  samples.forEach((value, index) => {
    const x = samples.length < 2 ? 0 : (index * canvas.width) / (samples.length - 1);
    const y = canvas.height - 2 - (value / top) * (canvas.height - 4);
    if (index === 0) context.moveTo(x, y);
    else context.lineTo(x, y);
  });
  context.stroke();
}

function lose(why) {
  byId("health").textContent = why;
  byId("health").className = "critical";
  document.title = "tandemgw: no answer";
}

function show(data) {
  if (data.error) {
    lose(data.error);
    return;
  }
  showHealth(data.status);
  showUnits(data.status);
  showTables(data);
  showTraffic(data.status);
  offer(data.status);
}

// Server-sent events, with the secret of the session in a header: an EventSource can't send one.
async function follow() {
  const answer = await fetch("stream", { headers: credentials() });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const message of messages) {
      const data = message.split("\n").find((line) => line.startsWith("data: "));
      if (data) show(JSON.parse(data.slice(6)));
    }
  }
}

const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));

async function main() {
  for (;;) {
    try {
      if (await learnSession()) await follow();
    } catch {
      lose("tandemgw web does not answer");
    }
    await pause(1000);
  }
}
