//! `tandemgw witness`: asks an etcd cluster what the gateway wants to know. It can hold nothing but
//! this process.
//!
//! A lease of etcd for each group: whoever has put its name at the group's key, attached to such a
//! lease, has the group until the lease ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tandemgw::os::etcd::{Etcd, EtcdError, Place};
use tandemgw::os::{clock, hook};
use tandemgw_core::control::protocol::{LeaseHolder, LeaseQuestion, Request, WitnessQuestion};
use tandemgw_core::time::Time;

use super::client::{Client, ClientError, PATIENCE, parse};
use super::{fail, say};

/// Between two attempts to reach a gateway that has ended.
const RETRY: Duration = Duration::from_secs(1);

pub fn witness(socket: Option<&Path>) -> ExitCode {
    let mut path = socket.map(Path::to_owned);
    let mut has_been_there = false;
    let mut leases = Leases::default();
    loop {
        match follow(&mut path, &mut has_been_there, &mut leases) {
            Ok(()) => {}
            Err(ClientError::NotRunning(_) | ClientError::Failed(_)) if has_been_there => {}
            Err(error) => return fail(error.code(), error),
        }
        hook::pause(RETRY);
    }
}

/// Answers the questions of a gateway until it ends.
fn follow(
    path: &mut Option<PathBuf>,
    has_been_there: &mut bool,
    leases: &mut Leases,
) -> Result<(), ClientError> {
    let mut client = Client::connect(path.as_deref(), PATIENCE)?;
    // The same one again, whatever else is started meanwhile.
    *path = Some(client.path().to_owned());
    let mut back = Client::connect(path.as_deref(), PATIENCE)?;
    client.ask(&Request::Witness, |line| {
        *has_been_there = true;
        let question: WitnessQuestion = parse(line)?;
        back.ask(&leases.answer(question), |_| Ok(()))
    })
}

/// The leases of this unit at an etcd.
#[derive(Default)]
struct Leases {
    etcd: Option<Etcd>,
    /// By group: its number at the etcd.
    own: BTreeMap<String, String>,
    told: Option<String>,
}

impl Leases {
    /// Asks the etcd, and says what it says.
    fn answer(&mut self, question: WitnessQuestion) -> Request {
        // Before the gateway waits no longer.
        let patience = Duration::from_secs_f64(question.timeout_s.clamp(0.0, 60.0)) * 4 / 5;
        let asked = self.ask(&question, clock::now() + patience);
        let why = asked.as_ref().err().map(ToString::to_string);
        if let Some(why) = why.as_ref().filter(|why| self.told.as_ref() != Some(why)) {
            say(format_args!("tandemgw: {why}\n"));
        }
        self.told.clone_from(&why);
        let (leases, lasts_s) = asked.unwrap_or_default();
        Request::WitnessAnswer {
            run: question.run,
            number: question.number,
            error: why,
            lasts_s,
            leases,
        }
    }

    fn ask(
        &mut self,
        question: &WitnessQuestion,
        until: Time,
    ) -> Result<(Vec<LeaseHolder>, f64), EtcdError> {
        let place = place(question);
        let mut etcd = match self.etcd.take() {
            Some(etcd) if *etcd.place() == place => etcd,
            _ => {
                self.own.clear();
                Etcd::new(place)
            }
        };
        let said = self.ask_each(&mut etcd, question, until);
        self.etcd = Some(etcd);
        said
    }

    /// Also asks something if no lease is wanted: whether most of the members are there.
    fn ask_each(
        &mut self,
        etcd: &mut Etcd,
        question: &WitnessQuestion,
        until: Time,
    ) -> Result<(Vec<LeaseHolder>, f64), EtcdError> {
        let mut holders = Vec::new();
        let mut lasts_s = question.lease_s;
        if question.leases.is_empty() {
            let (first, end) = (&question.prefix, end_of(&question.prefix));
            let range =
                json!({ "key": code(first), "range_end": BASE64.encode(end), "count_only": true });
            etcd.ask("/v3/kv/range", &range, until)?;
        }
        for wanted in &question.leases {
            let holder = match wanted.hold {
                true => {
                    let (holder, lasts) = self.hold(etcd, question, wanted, until)?;
                    lasts_s = lasts.min(lasts_s);
                    holder
                }
                false => {
                    self.own.remove(&wanted.group);
                    give_back(etcd, question, wanted, until)?
                }
            };
            holders.push(LeaseHolder {
                group: wanted.group.clone(),
                holder,
            });
        }
        Ok((holders, lasts_s))
    }

    /// Takes or keeps a lease; returns who has it, and how long that of this unit lasts.
    fn hold(
        &mut self,
        etcd: &mut Etcd,
        question: &WitnessQuestion,
        wanted: &LeaseQuestion,
        until: Time,
    ) -> Result<(Option<String>, f64), EtcdError> {
        // First renewed, then looked at: whoever has it afterwards has it for that long.
        let (id, lasts) = self.renew(etcd, question, wanted, until)?;
        let key = code(&format!("{}{}", question.prefix, wanted.group));
        let put =
            json!({ "requestPut": { "key": key, "value": code(&question.node), "lease": id } });
        let look = json!({ "requestRange": { "key": key } });
        let take_if = |condition: Value| json!({ "compare": [condition], "success": [put], "failure": [look] });
        let free =
            json!({ "target": "CREATE", "key": key, "result": "EQUAL", "createRevision": "0" });
        let answer = etcd.ask("/v3/kv/txn", &take_if(free), until)?;
        let Some((holder, lease)) = found(&answer) else {
            // If it has not been put, the one who had it is just gone: next time.
            let own = succeeded(&answer).then(|| question.node.clone());
            return Ok((own, lasts));
        };
        // Of this unit, but of a process before; or of one that leaves it to this unit.
        let mine = holder == question.node && lease == id;
        if mine || holder != question.node && !wanted.take_from.contains(&holder) {
            return Ok((Some(holder), lasts));
        }
        let same =
            json!({ "target": "VALUE", "key": key, "result": "EQUAL", "value": code(&holder) });
        let answer = etcd.ask("/v3/kv/txn", &take_if(same), until)?;
        let holder = match found(&answer) {
            None if succeeded(&answer) => Some(question.node.clone()),
            found => found.map(|(holder, _)| holder),
        };
        Ok((holder, lasts))
    }

    /// The number of the lease for a group, and how many seconds it lasts from now on.
    fn renew(
        &mut self,
        etcd: &mut Etcd,
        question: &WitnessQuestion,
        wanted: &LeaseQuestion,
        until: Time,
    ) -> Result<(String, f64), EtcdError> {
        if let Some(id) = self.own.get(&wanted.group) {
            let answer = etcd.ask("/v3/lease/keepalive", &json!({ "ID": id }), until)?;
            let lasts = number(&answer["result"]["TTL"]);
            if lasts > 0.0 {
                return Ok((id.clone(), lasts));
            }
        }
        let seconds = question.lease_s.ceil() as u64;
        let answer = etcd.ask("/v3/lease/grant", &json!({ "TTL": seconds }), until)?;
        let id = answer["ID"].as_str().unwrap_or_default().to_owned();
        self.own.insert(wanted.group.clone(), id.clone());
        Ok((id, number(&answer["TTL"])))
    }
}

/// Removes the name of this unit; returns who else has the lease.
fn give_back(
    etcd: &mut Etcd,
    question: &WitnessQuestion,
    wanted: &LeaseQuestion,
    until: Time,
) -> Result<Option<String>, EtcdError> {
    let key = code(&format!("{}{}", question.prefix, wanted.group));
    let own =
        json!({ "target": "VALUE", "key": key, "result": "EQUAL", "value": code(&question.node) });
    let body = json!({
        "compare": [own],
        "success": [{ "requestDeleteRange": { "key": key } }],
        "failure": [{ "requestRange": { "key": key } }],
    });
    let answer = etcd.ask("/v3/kv/txn", &body, until)?;
    Ok(found(&answer).map(|(holder, _)| holder))
}

fn place(question: &WitnessQuestion) -> Place {
    Place {
        endpoints: question.endpoints.clone(),
        ca: question.ca.clone(),
        identity: question.cert.clone().zip(question.key.clone()),
        user: question.user.clone().zip(question.password_file.clone()),
    }
}

/// Text as etcd has it in JSON.
fn code(text: &str) -> String {
    BASE64.encode(text)
}

/// The first key that does not begin with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // Text has no byte of 255.
        *last += 1;
    }
    end
}

/// Numbers of 64 bits are text; one that is 0 is left out.
fn number(value: &Value) -> f64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    text.or(value.as_f64()).unwrap_or(0.0)
}

fn succeeded(answer: &Value) -> bool {
    answer["succeeded"].as_bool() == Some(true)
}

/// Who has a key, and by which lease, if a transaction has not put this unit there.
fn found(answer: &Value) -> Option<(String, String)> {
    if succeeded(answer) {
        return None;
    }
    let pair = answer.pointer("/responses/0/response_range/kvs/0")?;
    let value = BASE64.decode(pair["value"].as_str()?).ok()?;
    let lease = pair["lease"].as_str().unwrap_or("0").to_owned();
    Some((String::from_utf8(value).ok()?, lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_etcd_are_understood() {
        let put = json!({ "header": {}, "succeeded": true, "responses": [{ "response_put": {} }] });
        assert_eq!(found(&put), None);
        let held = json!({ "responses": [{ "response_range": {
            "kvs": [{ "key": "Zw==", "value": "Z3ctYg==", "lease": "7587" }], "count": "1",
        } }] });
        assert_eq!(found(&held), Some(("gw-b".into(), "7587".into())));
        // It has ended between the two.
        let none = json!({ "responses": [{ "response_range": {} }] });
        assert_eq!(found(&none), None);
        assert_eq!(number(&json!("5")), 5.0);
        assert_eq!(number(&Value::Null), 0.0);
        assert_eq!(end_of("tandemgw/7/"), b"tandemgw/70");
    }
}
