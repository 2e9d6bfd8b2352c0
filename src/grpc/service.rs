//! `millrace.v1.Subscriber`: hands each call to where it is answered.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use tonic::{Request, Response, Status, Streaming};

use super::admission::Deadline;
use super::records::Reader;
use super::subscribe::{self, Client, Responses};
use super::{Broker, fetch, list_topics, offsets};
use crate::http::CloseConnection;
use crate::proto::subscriber_server::Subscriber;
use crate::proto::{
    CommitRequest, CommitResponse, CommittedRequest, CommittedResponse, FetchRequest, FetchResponse,
    ListTopicsRequest, ListTopicsResponse, OffsetsForTimeRequest, OffsetsForTimeResponse, SubscribeRequest,
};

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    broker: Broker,
    reader: Reader,
}

impl Service {
    /// For a broker.
    pub fn new(broker: Broker) -> Self {
        subscribe::register_metrics();
        Service { broker, reader: Reader::default() }
    }
}

#[tonic::async_trait]
impl Subscriber for Service {
    type SubscribeStream = Responses;

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let close = request.extensions().get::<CloseConnection>().cloned().unwrap_or_default();
        let client = Client { peer, deadline, close };
        let (broker, reader) = (self.broker.clone(), self.reader.clone());
        let responses = subscribe::start(broker, reader, request.into_inner(), client);
        Ok(Response::new(responses))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        list_topics::list_topics(&self.broker, request.into_inner()).map(Response::new)
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchResponse>, Status> {
        fetch::fetch(&self.broker, &self.reader, request.into_inner()).await.map(Response::new)
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        offsets::commit(&self.broker, request.into_inner()).await.map(Response::new)
    }

    async fn committed(
        &self,
        request: Request<CommittedRequest>,
    ) -> Result<Response<CommittedResponse>, Status> {
        offsets::committed(&self.broker, request.into_inner()).map(Response::new)
    }

    async fn offsets_for_time(
        &self,
        request: Request<OffsetsForTimeRequest>,
    ) -> Result<Response<OffsetsForTimeResponse>, Status> {
        offsets::offsets_for_time(&self.broker, request.into_inner()).await.map(Response::new)
    }
}
