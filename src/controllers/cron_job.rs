//! CronJobs: a Job at each time of a schedule.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use tokio_util::sync::CancellationToken;

use self::schedule::Schedule;
use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine, is_already_exists, is_not_found, text};
use crate::job::is_finished;
use crate::owner::{Owner, controlled_by, is_controlled_by};
use crate::pods::is_terminating;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this mean a wrong clock or a long sleep; they are not walked through one by one.
const MISSED_MAX: usize = 100;

struct Controller {
    client: Client,
    recorder: Recorder,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let crons = context.informers.of::<CronJob>();
    let jobs = context.informers.of::<Job>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("cronjob-controller"),
        crons: crons.clone(),
        jobs: jobs.clone(),
    };
    let on_job = |change: &Change<Job>| {
        let (Change::Applied { new: job, .. } | Change::Deleted(job)) = change else { return };
        if let Some(key) = controlled_by(&job.metadata, "CronJob") {
            queue.add(key);
        }
    };
    let resync = || queue_all(&crons, &queue);
    tokio::join!(
        follow_keys(crons.clone(), queue.clone(), stop.clone()),
        follow(jobs.clone(), stop.clone(), on_job, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(crons.synced(), jobs.synced()); } => (),
            }
            control::work("cronjob", queue.clone(), 2, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

/// The newest time that is due, whether there were too many to count, and the wait for the next.
fn due(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> (Option<Timestamp>, bool, Option<Duration>) {
    let mut last = None;
    let mut cursor = since;
    let mut count = 0;
    while let Some(next) = schedule.next(cursor, zone) {
        if next > now {
            let wait = u64::try_from(next.as_millisecond() - now.as_millisecond()).unwrap_or(0);
            return (last, count > MISSED_MAX, Some(Duration::from_millis(wait)));
        }
        last = Some(next);
        cursor = next;
        count += 1;
        if count == MISSED_MAX + 1 {
            // Only the newest matters: jump to the last hour, where it is, if the schedule has one that often.
            cursor = cursor.max(now - Duration::from_secs(3600));
        }
    }
    (last, count > MISSED_MAX, None)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(cron) = self.crons.get(&key.0, &key.1) else { return Ok(None) };
        let spec = &cron.spec;
        if cron.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let uid = cron.metadata.uid.clone().unwrap_or_default();
        let mine: Vec<_> =
            self.jobs.list_in(&key.0).into_iter().filter(|job| is_controlled_by(&job.metadata, &uid)).collect();
        let mut status = cron.status.clone().unwrap_or_default();
        self.track(&cron, &mut status, &mine);
        self.trim(&cron, spec, &mine).await?;
        let next = self.schedule(&cron, spec, &mut status, &mine).await;
        status.active = status.active.take().filter(|active| !active.is_empty());
        if cron.status.as_ref() != Some(&status) {
            let api: Api<CronJob> = Api::namespaced(self.client.clone(), &key.0);
            let updated = CronJob { status: Some(status), ..(*cron).clone() };
            match api.replace_status(&key.1, &PostParams::default(), &updated).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        next
    }

    /// Which Jobs run, and when one last succeeded.
    fn track(&self, cron: &CronJob, status: &mut CronJobStatus, mine: &[Arc<Job>]) {
        let active = status.active.get_or_insert_default();
        for job in mine {
            let at = active.iter().position(|reference| reference.uid == job.metadata.uid);
            match (is_finished(job), at) {
                (true, Some(at)) => {
                    active.remove(at);
                    let outcome = if succeeded(job) { "Complete" } else { "Failed" };
                    let message = format!("Saw completed job: {}, condition: {outcome}", key_of(&**job).1);
                    self.recorder.event(reference(cron), EventType::Normal, "SawCompletedJob", message);
                }
                (false, None) => active.push(reference(&**job)),
                _ => {}
            }
            let ended = job.status.as_ref().and_then(|s| s.completion_time.clone()).filter(|_| succeeded(job));
            if ended.as_ref().map(|t| t.0) > status.last_successful_time.as_ref().map(|t| t.0) {
                status.last_successful_time = ended;
            }
        }
        active.retain(|reference| mine.iter().any(|job| job.metadata.uid == reference.uid));
    }

    async fn trim(&self, cron: &CronJob, spec: &CronJobSpec, mine: &[Arc<Job>]) -> Result<(), Error> {
        let limits = [
            (true, spec.successful_jobs_history_limit.unwrap_or(3)),
            (false, spec.failed_jobs_history_limit.unwrap_or(1)),
        ];
        for (good, limit) in limits {
            let mut finished: Vec<_> = mine.iter().filter(|job| is_finished(job) && succeeded(job) == good).collect();
            finished.sort_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|time| time.0));
            let surplus = finished.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in finished.into_iter().take(surplus).filter(|job| job.metadata.deletion_timestamp.is_none()) {
                self.delete_job(cron, job).await?;
            }
        }
        Ok(())
    }

    async fn delete_job(&self, cron: &CronJob, job: &Job) -> Result<(), Error> {
        let (namespace, name) = key_of(job);
        let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        gone_is_fine(api.delete(&name, &DeleteParams::background()).await)?;
        self.recorder.event(reference(cron), EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        Ok(())
    }

    async fn schedule(
        &self,
        cron: &CronJob,
        spec: &CronJobSpec,
        status: &mut CronJobStatus,
        mine: &[Arc<Job>],
    ) -> Outcome {
        let warn =
            |reason: &str, message: String| self.recorder.event(reference(cron), EventType::Warning, reason, message);
        if spec.suspend == Some(true) {
            return Ok(None);
        }
        let Some(schedule) = Schedule::parse(&spec.schedule) else {
            warn("UnparseableSchedule", format!("unparseable schedule: {:?}", spec.schedule));
            return Ok(None);
        };
        let zone = match spec.time_zone.as_deref().map(TimeZone::get) {
            None => TimeZone::UTC,
            Some(Ok(zone)) => zone,
            Some(Err(error)) => {
                warn(
                    "UnknownTimeZone",
                    format!("invalid timeZone: {}: {error}", spec.time_zone.as_deref().unwrap_or_default()),
                );
                return Ok(None);
            }
        };
        let now = Timestamp::now();
        let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
        let mut since = status.last_schedule_time.as_ref().map_or(created, |time| time.0);
        if let Some(deadline) = spec.starting_deadline_seconds.and_then(|s| u64::try_from(s).ok()) {
            since = since.max(now.checked_sub(Duration::from_secs(deadline)).unwrap_or(since));
        }
        let (at, too_many, next) = due(&schedule, &zone, since, now);
        if too_many {
            warn(
                "TooManyMissedTimes",
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
                    .to_owned(),
            );
        }
        let Some(at) = at else { return Ok(next) };
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if status.active.as_ref().is_some_and(|active| !active.is_empty()) => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid".to_owned();
                self.recorder.event(reference(cron), EventType::Normal, "JobAlreadyActive", message);
                return Ok(next);
            }
            Some("Replace") => {
                for job in mine.iter().filter(|job| !is_finished(job)) {
                    self.delete_job(cron, job).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        let job = new_job(cron, spec, at);
        let (namespace, name) = key_of(&job);
        let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        match api.create(&PostParams::default(), &job).await {
            Ok(created) => {
                self.recorder.event(
                    reference(cron),
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created job {name}"),
                );
                status.active.get_or_insert_default().push(reference(&created));
            }
            // Made by a pass whose status was lost.
            Err(error) if is_already_exists(&error) => {}
            Err(error) if is_terminating(&error) => return Ok(None),
            Err(error) => {
                warn("FailedCreate", format!("Error creating job: {}", text(&error)));
                return Err(error.into());
            }
        }
        status.last_schedule_time = Some(Time(at));
        Ok(next)
    }
}

fn succeeded(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Complete" && c.status == "True")
}

/// Named by its time in minutes, so that one time never makes two Jobs.
fn new_job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp) -> Job {
    let owner = Owner::of(cron);
    let template = spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), at.to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", owner.name, at.as_second() / 60)),
            namespace: Some(owner.namespace.clone()),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_missed_time_is_due() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let every = |text: &str| Schedule::parse(text).unwrap();
        let utc = TimeZone::UTC;
        let now = at("2026-01-02T00:03:30Z");
        assert_eq!(
            due(&every("* * * * *"), &utc, at("2026-01-02T00:03:00Z"), now),
            (None, false, Some(Duration::from_secs(30)))
        );
        let (last, many, _) = due(&every("* * * * *"), &utc, at("2026-01-02T00:00:00Z"), now);
        assert_eq!((last, many), (Some(at("2026-01-02T00:03:00Z")), false));
        let (last, many, _) = due(&every("* * * * *"), &utc, at("2025-01-01T00:00:00Z"), now);
        assert_eq!((last, many), (Some(at("2026-01-02T00:03:00Z")), true));
    }
}
