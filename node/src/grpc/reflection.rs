//! Server reflection: what services there are and what their messages look like, from the descriptors of the published
//! .proto files. Anyone may ask: the files are public.

use bytes::Bytes;
use krita_net::http::{BodySender, IncomingBody, OutgoingBody, Response};
use krita_proto::GRPC_DESCRIPTORS;
use krita_proto::grpc_reflection::server_reflection_request::MessageRequest as Asked;
use krita_proto::grpc_reflection::server_reflection_response::MessageResponse as Answer;
use krita_proto::grpc_reflection::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
};
use krita_runtime::{Runtime, TaskClass};
use prost::Message as _;

use super::Call;
use super::framing::{Messages, frame, with_body};
use super::status::Status;
use crate::failure::Failure;

/// Longest question, in bytes.
const REQUEST_BYTES_MAX: usize = 4 * 1024;

/// Most questions of one stream.
const REQUESTS_MAX: usize = 1_000;

/// Answers each question of the stream in turn.
pub(super) fn answer<R: Runtime>(
    call: Call<R>,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    let (sender, outgoing) = OutgoingBody::channel();
    call.core.runtime.spawn(TaskClass::Foreground, "grpc-reflection", async move {
        answer_all(body, sender).await;
    });
    Ok(with_body(outgoing))
}

async fn answer_all(body: IncomingBody, mut sender: BodySender) {
    let files = match Files::read() {
        Ok(files) => files,
        Err(failure) => return sender.finish(Some(Status::from(failure).trailers())),
    };
    let mut messages = Messages::new(body);
    for _ in 0..REQUESTS_MAX {
        let request = match messages.next(REQUEST_BYTES_MAX).await {
            Ok(Some(request)) => request,
            Ok(None) => return sender.finish(Some(Status::ok_trailers())),
            Err(status) => return sender.finish(Some(status.trailers())),
        };
        let request = match ServerReflectionRequest::decode(request) {
            Ok(request) => request,
            Err(error) => {
                let failure = Failure::invalid(format!("the request does not decode: {error}"));
                return sender.finish(Some(Status::from(failure).trailers()));
            }
        };
        if sender.send(frame(&files.respond(request))).await.is_err() {
            return;
        }
    }
    let failure = Failure::overloaded("ask on by another call");
    sender.finish(Some(Status::from(failure).trailers()));
}

/// One file, as it was compiled, and the names that it declares.
struct File {
    encoded: Bytes,
    descriptor: FileDescriptor,
    symbols: Vec<String>,
}

/// All files, each after those that it imports.
struct Files(Vec<File>);

impl Files {
    fn read() -> Result<Self, Failure> {
        let broken =
            |error| Failure::new(krita_proto::error::ErrorCode::Internal, format!("descriptors: {error}"));
        let set = FileSet::decode(GRPC_DESCRIPTORS).map_err(broken)?;
        let read = |encoded: Bytes| {
            let descriptor = FileDescriptor::decode(encoded.clone())?;
            let symbols = descriptor.symbols();
            Ok(File { encoded, descriptor, symbols })
        };
        set.file.into_iter().map(read).collect::<Result<_, _>>().map(Self).map_err(broken)
    }

    fn respond(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let found = match &request.message_request {
            Some(Asked::FileByFilename(name)) => self.file(|file| file.descriptor.name == *name),
            Some(Asked::FileContainingSymbol(symbol)) => self.file(|file| file.symbols.contains(symbol)),
            Some(Asked::ListServices(_)) => Some(self.services()),
            // Nothing here has extensions.
            Some(Asked::FileContainingExtension(_) | Asked::AllExtensionNumbersOfType(_)) | None => None,
        };
        let answer = found.unwrap_or_else(|| {
            let status = Status::not_found("there is no such name");
            Answer::ErrorResponse(ErrorResponse {
                error_code: i32::from(status.code()),
                error_message: status.message().to_owned(),
            })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }
    }

    /// The file and all that it imports, itself first.
    fn file(&self, is_wanted: impl Fn(&File) -> bool) -> Option<Answer> {
        let mut wanted = vec![self.0.iter().find(|file| is_wanted(file))?];
        let mut looked_at = 0;
        while let Some(file) = wanted.get(looked_at).copied() {
            looked_at += 1;
            for name in &file.descriptor.dependency {
                if !wanted.iter().any(|known| known.descriptor.name == *name) {
                    wanted.extend(self.0.iter().find(|file| file.descriptor.name == *name));
                }
            }
        }
        let file_descriptor_proto = wanted.into_iter().map(|file| file.encoded.clone()).collect();
        Some(Answer::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto }))
    }

    fn services(&self) -> Answer {
        let names = self.0.iter().flat_map(|file| {
            file.descriptor.service.iter().map(|service| file.descriptor.full_name(&service.name))
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        let service = names.into_iter().map(|name| ServiceResponse { name }).collect();
        Answer::ListServicesResponse(ListServiceResponse { service })
    }
}

/// google.protobuf.FileDescriptorSet, its files left as they are.
#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// What reflection needs of google.protobuf.FileDescriptorProto.
#[derive(Clone, PartialEq, prost::Message)]
struct FileDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<MessageDescriptor>,
    #[prost(message, repeated, tag = "5")]
    enum_type: Vec<Named>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<ServiceDescriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MessageDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "3")]
    nested_type: Vec<MessageDescriptor>,
    #[prost(message, repeated, tag = "4")]
    enum_type: Vec<Named>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Named>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl FileDescriptor {
    fn full_name(&self, name: &str) -> String {
        format!("{}.{name}", self.package)
    }

    fn symbols(&self) -> Vec<String> {
        let mut symbols = Vec::new();
        for message in &self.message_type {
            message.push_symbols(&self.package, &mut symbols);
        }
        symbols.extend(self.enum_type.iter().map(|named| self.full_name(&named.name)));
        for service in &self.service {
            let name = self.full_name(&service.name);
            symbols.extend(service.method.iter().map(|method| format!("{name}.{}", method.name)));
            symbols.push(name);
        }
        symbols
    }
}

impl MessageDescriptor {
    fn push_symbols(&self, parent: &str, symbols: &mut Vec<String>) {
        let name = format!("{parent}.{}", self.name);
        for nested in &self.nested_type {
            nested.push_symbols(&name, symbols);
        }
        symbols.extend(self.enum_type.iter().map(|named| format!("{name}.{}", named.name)));
        symbols.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(asked: Asked) -> Answer {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
        Files::read().unwrap().respond(request).message_response.unwrap()
    }

    fn names(answer: Answer) -> Vec<String> {
        match answer {
            Answer::FileDescriptorResponse(files) => {
                let decoded = files.file_descriptor_proto.into_iter().map(FileDescriptor::decode);
                decoded.map(|file| file.unwrap().name).collect()
            }
            Answer::ListServicesResponse(list) => list.service.into_iter().map(|it| it.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn services_and_their_files_are_found() {
        let services = names(ask(Asked::ListServices(String::new())));
        let expected = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "krita.v1.Krita",
        ];
        assert_eq!(services, expected);
        for name in expected {
            assert!(!names(ask(Asked::FileContainingSymbol(name.to_owned()))).is_empty());
        }
        let files = names(ask(Asked::FileContainingSymbol("krita.v1.Krita.Put".to_owned())));
        assert_eq!(files, ["krita/v1/service.proto", "krita/v1/data.proto"]);
        let files = names(ask(Asked::FileByFilename("krita/v1/data.proto".to_owned())));
        assert_eq!(files, ["krita/v1/data.proto"]);
        let status = "grpc.health.v1.HealthCheckResponse.ServingStatus".to_owned();
        assert_eq!(names(ask(Asked::FileContainingSymbol(status))), ["grpc/health/v1/health.proto"]);
    }

    #[test]
    fn what_is_not_published_is_not_found() {
        for asked in [
            Asked::FileContainingSymbol("krita.v1.RaftBurst".to_owned()),
            Asked::FileByFilename("krita/v1/peer.proto".to_owned()),
            Asked::AllExtensionNumbersOfType("krita.v1.Put".to_owned()),
        ] {
            let answer = ask(asked);
            assert!(matches!(&answer, Answer::ErrorResponse(error) if error.error_code == 5), "{answer:?}");
        }
    }
}
