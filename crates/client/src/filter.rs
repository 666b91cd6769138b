//! The screening of campaigns.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future as _;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Code, Status};

use crate::calls::{Attempts, Calls, Failure, within};
use crate::client::{Backend, Client};
use crate::error::Error;
use crate::pb;
use crate::question::{Form, Question};
use crate::verdict::Verdict;

/// Users of a chunk.
const CHUNK: usize = 1_000;
/// Chunks that are under way at once.
const CHUNKS_UNDER_WAY: usize = 4;
/// How long a chunk may take, repetitions included.
const CHUNK_DEADLINE: Duration = Duration::from_secs(5);
/// No user id is longer, in bytes. A longer one is malformed, and would take the others' room.
const MAX_ID_BYTES: usize = 160;

/// What a campaign's messages are: one question for all of its users.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a campaign does nothing until its users are filtered"]
pub struct Campaign {
    question: Question,
}

impl Campaign {
    /// Messages of `business` in this category.
    pub fn new(business: impl Into<String>, category: impl Into<String>) -> Self {
        Self { question: Question::new("", business, category) }
    }

    /// How the messages are written.
    pub fn form(self, form: Form) -> Self {
        Self { question: self.question.form(form) }
    }

    /// The template that the messages will be: see [`Question::template`].
    pub fn template(self, name: impl Into<String>, language: impl Into<String>) -> Self {
        Self { question: self.question.template(name, language) }
    }
}

/// The verdicts on a campaign's users, in order: a stream of each user with its verdict. Dropping it ends the
/// screening.
#[must_use = "nothing is screened until it is read"]
pub struct Filtered {
    client: Client,
    campaign: Campaign,
    /// None once all of them were taken.
    users: Option<Pin<Box<dyn Stream<Item = String> + Send>>>,
    chunk: Vec<String>,
    under_way: VecDeque<Chunk>,
    /// The most users of a chunk that the sidecar is known to take.
    max_users: Arc<AtomicUsize>,
    decided: std::vec::IntoIter<(String, Verdict)>,
}

/// A chunk under way, which ends when it is dropped.
struct Chunk(JoinHandle<Vec<(String, Verdict)>>, usize);

impl Drop for Chunk {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Filtered {
    pub(crate) fn new(
        client: Client,
        users: Pin<Box<dyn Stream<Item = String> + Send>>,
        campaign: Campaign,
    ) -> Self {
        Self {
            client,
            campaign,
            users: Some(users),
            chunk: Vec::new(),
            under_way: VecDeque::new(),
            max_users: Arc::new(AtomicUsize::new(CHUNK)),
            decided: Vec::new().into_iter(),
        }
    }

    /// The next user and its verdict; `None` after the last one.
    pub async fn next(&mut self) -> Option<(String, Verdict)> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Takes users and begins chunks, as far as there is room.
    fn begin_chunks(&mut self, context: &mut Context<'_>) {
        while self.under_way.len() < CHUNKS_UNDER_WAY {
            let Some(users) = &mut self.users else { return };
            match users.as_mut().poll_next(context) {
                Poll::Ready(Some(user)) => {
                    self.chunk.push(user);
                    if self.chunk.len() >= self.max_users.load(Ordering::Relaxed) {
                        self.begin_chunk();
                    }
                }
                Poll::Ready(None) => {
                    self.users = None;
                    self.begin_chunk();
                }
                // What has come does not wait for users that are slow to come.
                Poll::Pending => {
                    if self.under_way.is_empty() {
                        self.begin_chunk();
                    }
                    return;
                }
            }
        }
    }

    fn begin_chunk(&mut self) {
        if !self.chunk.is_empty() {
            let users = mem::take(&mut self.chunk);
            let size = users.len();
            let max_users = Arc::clone(&self.max_users);
            let screened = screen(self.client.clone(), self.campaign.clone(), users, max_users);
            #[allow(clippy::disallowed_methods, reason = "aborted when this is dropped")]
            self.under_way.push_back(Chunk(tokio::spawn(screened), size));
        }
    }
}

impl Stream for Filtered {
    type Item = (String, Verdict);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(decided) = self.decided.next() {
                return Poll::Ready(Some(decided));
            }
            self.begin_chunks(context);
            let Some(Chunk(first, size)) = self.under_way.front_mut() else {
                return if self.users.is_none() { Poll::Ready(None) } else { Poll::Pending };
            };
            let (size, screened) = (*size, ready!(Pin::new(first).poll(context)));
            self.under_way.pop_front();
            self.decided = screened
                .unwrap_or_else(|_| {
                    // The runtime ends, and with it whoever reads this.
                    let error = Error::new(Code::Cancelled, "the client's runtime has ended");
                    vec![(String::new(), error.into()); size]
                })
                .into_iter();
        }
    }
}

impl fmt::Debug for Filtered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Omits user ids.
        f.debug_struct("Filtered").field("campaign", &self.campaign).finish_non_exhaustive()
    }
}

/// Screens one chunk, in parts where the sidecar takes fewer users at once.
async fn screen(
    client: Client,
    campaign: Campaign,
    mut users: Vec<String>,
    max_users: Arc<AtomicUsize>,
) -> Vec<(String, Verdict)> {
    let calls = match &client.0.backend {
        Backend::Sidecar { calls, .. } => calls,
        #[cfg(feature = "testing")]
        Backend::Fake(rules) => {
            let answer = |user: String| {
                let mut request = campaign.question.request.clone();
                request.user_id.clone_from(&user);
                (user, rules.answer(&request).into())
            };
            return users.into_iter().map(answer).collect();
        }
    };
    let mut screened = Vec::with_capacity(users.len());
    while !users.is_empty() {
        let size = max_users.load(Ordering::Relaxed).min(users.len());
        match ask(calls, &campaign, users.get(..size).unwrap_or_default()).await {
            Ok(response) => {
                let verdict = |reason: i32| verdict(reason, &response);
                screened
                    .extend(users.drain(..size).zip(response.reasons.iter().copied().map(verdict)));
            }
            Err(error) if size > 1 && is_too_large(&error) => {
                max_users.fetch_min(size.div_ceil(2), Ordering::Relaxed);
            }
            Err(error) => {
                // Where there was no answer for as long as a chunk may take, the rest is not asked for.
                let is_late = error.code() == Code::DeadlineExceeded;
                let refused = users.drain(..if is_late { users.len() } else { size });
                screened.extend(refused.map(|user| (user, error.clone().into())));
            }
        }
    }
    screened
}

/// Whether a chunk was refused because it has more users than the sidecar's `--max-recipients`.
fn is_too_large(error: &Error) -> bool {
    error.code() == Code::InvalidArgument
        && error.violations().iter().any(|one| one.field == "user_ids")
}

/// Asks about some users, again where the connection or the stream ends or the sidecar cannot serve it, until the
/// deadline.
async fn ask(
    calls: &Calls,
    campaign: &Campaign,
    users: &[String],
) -> Result<pb::FilterRecipientsResponse, Error> {
    let pb::CanSendRequest { business_id, category, form, template, .. } =
        campaign.question.request.clone();
    let id = |user: &String| if user.len() > MAX_ID_BYTES { String::new() } else { user.clone() };
    let user_ids = users.iter().map(id).collect();
    let request = pb::FilterRecipientsRequest { business_id, category, form, user_ids, template };
    let deadline = Instant::now() + CHUNK_DEADLINE;
    let mut attempts = Attempts::new();
    loop {
        match within(deadline, ask_once(calls.clone(), request.clone())).await {
            Ok(response) if response.reasons.len() == users.len() => return Ok(response),
            Ok(_) => {
                let why = "the sidecar's answer has not one reason for each user";
                return Err(Error::new(Code::Internal, why));
            }
            Err(Failure::Late) => return Err(attempts.late()),
            // A stream ends with its connection, which the sidecar calls UNAVAILABLE.
            Err(Failure::Status(status)) if attempts.may_repeat(&status) => {
                attempts.pause(deadline).await;
            }
            Err(Failure::Status(status)) => return Err(Error::of_status(&status)),
        }
    }
}

async fn ask_once(
    mut calls: Calls,
    request: pb::FilterRecipientsRequest,
) -> Result<tonic::Response<pb::FilterRecipientsResponse>, Status> {
    let request = tokio_stream::once(request);
    let mut answers = calls.checks.filter_recipients(request).await?.into_inner();
    let answer = answers.message().await?;
    let ended = || Status::unavailable("the stream ended without an answer");
    answer.map(tonic::Response::new).ok_or_else(ended)
}

fn verdict(reason: i32, response: &pb::FilterRecipientsResponse) -> Verdict {
    if reason == pb::Reason::Unspecified as i32 {
        let field = pb::ItemError {
            code: Code::InvalidArgument.into(),
            field: "user_id".to_owned(),
            message: "malformed".to_owned(),
        };
        return Error::of_item(field).into();
    }
    Verdict::from(Ok(pb::CanSendResponse {
        // The contract has values 1 to 9 allow, and every other one deny.
        allowed: (1..=9).contains(&reason),
        reason,
        staleness: response.staleness,
        category_used: response.category_used.clone(),
        ..Default::default()
    }))
}
