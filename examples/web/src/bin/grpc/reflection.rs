//! Reflection: clients such as grpcurl ask for the services and their messages. The messages of this protocol are those of
//! tonic-reflection; its server is not used, since it starts a task of tokio's for each client.

use std::error::Error;

use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use prost_reflect::{DescriptorPool, FileDescriptor};
use protox::file::File;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::server_reflection_server as server_v1;
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use tonic_reflection::pb::v1alpha::server_reflection_server as server_v1alpha;
use tonic_reflection::pb::{v1, v1alpha};

/// What there is to be asked for.
#[derive(Clone)]
pub(crate) struct Reflection(DescriptorPool);

impl Reflection {
    /// All services of this server.
    pub(crate) fn new() -> Result<Reflection, Box<dyn Error + Send + Sync>> {
        let mut pool = DescriptorPool::new();
        let echo = File::from_source("echo.proto", include_str!("echo.proto"))?;
        pool.add_file_descriptor_proto(echo.into())?;
        for set in [
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            pool.decode_file_descriptor_set(set)?;
        }
        Ok(Reflection(pool))
    }

    pub(crate) fn v1(self) -> server_v1::ServerReflectionServer<Reflection> {
        server_v1::ServerReflectionServer::new(self)
    }

    pub(crate) fn v1alpha(self) -> server_v1alpha::ServerReflectionServer<Reflection> {
        server_v1alpha::ServerReflectionServer::new(self)
    }

    fn answer(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match &request.message_request {
            Some(MessageRequest::ListServices(_)) => Ok(self.services()),
            Some(MessageRequest::FileByFilename(name)) => {
                self.0.get_file_by_name(name).map(file).ok_or(Code::NotFound)
            }
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                self.file_with(symbol).map(file).ok_or(Code::NotFound)
            }
            // There are no extensions.
            Some(MessageRequest::FileContainingExtension(_)) => Err(Code::NotFound),
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                let base_type_name = name.clone();
                let none = ExtensionNumberResponse { base_type_name, extension_number: Vec::new() };
                Ok(MessageResponse::AllExtensionNumbersResponse(none))
            }
            None => Err(Code::InvalidArgument),
        };
        let answer = answer.unwrap_or_else(|code| {
            let error_message = code.description().to_owned();
            MessageResponse::ErrorResponse(ErrorResponse { error_code: code.into(), error_message })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }
    }

    fn services(&self) -> MessageResponse {
        let names = self.0.services().map(|service| service.full_name().to_owned());
        let service = names.map(|name| ServiceResponse { name }).collect();
        MessageResponse::ListServicesResponse(ListServiceResponse { service })
    }

    /// The file that has a service, a message or an enum of that name, or one of which it is a part.
    fn file_with(&self, symbol: &str) -> Option<FileDescriptor> {
        let pool = &self.0;
        let service = pool.get_service_by_name(symbol).map(|service| service.parent_file());
        service
            .or_else(|| Some(pool.get_message_by_name(symbol)?.parent_file()))
            .or_else(|| Some(pool.get_enum_by_name(symbol)?.parent_file()))
            .or_else(|| self.file_with(symbol.rsplit_once('.')?.0))
    }
}

fn file(file: FileDescriptor) -> MessageResponse {
    let file_descriptor_proto = vec![file.encode_to_vec()];
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
}

#[tonic::async_trait]
impl server_v1::ServerReflection for Reflection {
    type ServerReflectionInfoStream = BoxStream<'static, Result<ServerReflectionResponse, Status>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |request| Ok(this.answer(request?)));
        Ok(Response::new(answers.boxed()))
    }
}

/// The older version: the same messages by other names, and older clients know no other.
#[tonic::async_trait]
impl server_v1alpha::ServerReflection for Reflection {
    type ServerReflectionInfoStream =
        BoxStream<'static, Result<v1alpha::ServerReflectionResponse, Status>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |request| {
            let answer = this.answer(same(&request?)?);
            same(&answer)
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// A message as that of the other version.
fn same<T: Message + Default>(message: &impl Message) -> Result<T, Status> {
    T::decode(&*message.encode_to_vec()).map_err(|error| Status::internal(error.to_string()))
}
