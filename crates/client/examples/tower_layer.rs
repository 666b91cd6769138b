//! A recipe: a tower layer around whatever sends messages, so that nothing is sent without a check.
//!
//! Run it with a fake client, which allows one of two users: `cargo run --example tower_layer --features testing`.

use std::pin::Pin;
use std::task::{Context, Poll};

use consentd_client::testing::Fake;
use consentd_client::{Client, Question, Verdict};
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};

/// A message that is to be sent, of whatever else it has.
#[derive(Clone, Debug)]
struct Message {
    user: String,
    business: String,
    category: String,
    text: String,
}

/// What became of a message.
#[derive(Debug)]
enum Outcome<T> {
    Sent(T),
    /// It must not be sent, or not now: an unavailable verdict means to try again later.
    Held(Verdict),
}

/// Checks each message before the service below sends it.
#[derive(Clone)]
struct ConsentLayer(Client);

impl<S> Layer<S> for ConsentLayer {
    type Service = Consent<S>;

    fn layer(&self, sender: S) -> Consent<S> {
        Consent { client: self.0.clone(), sender }
    }
}

#[derive(Clone)]
struct Consent<S> {
    client: Client,
    sender: S,
}

impl<S> Service<Message> for Consent<S>
where
    S: Service<Message> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Outcome<S::Response>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let client = self.client.clone();
        // The service that is ready is the one to be called: a clone need not be.
        let clone = self.sender.clone();
        let mut sender = std::mem::replace(&mut self.sender, clone);
        Box::pin(async move {
            let Message { user, business, category, .. } = &message;
            let verdict = client.may_send(Question::new(user, business, category)).await;
            if !verdict.is_allowed() {
                return Ok(Outcome::Held(verdict));
            }
            sender.call(message).await.map(Outcome::Sent)
        })
    }
}

#[tokio::main]
async fn main() {
    let fake = Fake::new();
    fake.allow("15550123456", "acme", "marketing");
    let mut sender = ServiceBuilder::new()
        .layer(ConsentLayer(fake.client()))
        .service_fn(|message: Message| async move { Ok::<_, std::io::Error>(message.text.len()) });
    for user in ["15550123456", "15550199999"] {
        let message = Message {
            user: user.to_owned(),
            business: "acme".to_owned(),
            category: "marketing".to_owned(),
            text: "20% off until Sunday".to_owned(),
        };
        match sender.ready().await.unwrap().call(message).await.unwrap() {
            Outcome::Sent(bytes) => println!("sent {bytes} bytes"),
            Outcome::Held(verdict) => println!("{verdict}"),
        }
    }
}
