//! Wire format of `moby.filesync.v1.FileSync`.
//!
//! Written by hand instead of generated: paths are bytes here (file names need not be UTF-8, and BuildKit accepts such
//! names), content is not copied, and packets are sent in large batches.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use prost::Message as _;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::super::MESSAGE_LIMIT;
use super::GrpcResponse;

/// Message `fsutil.types.Packet`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FsutilPacket {
    #[prost(enumeration = "PacketKind", tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) stat: Option<FsutilStat>,
    #[prost(uint32, tag = "3")]
    pub(super) id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum PacketKind {
    Stat = 0,
    Req = 1,
    Data = 2,
    Fin = 3,
    Err = 4,
}

/// Message `fsutil.types.Stat`; owner and group are left at 0.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FsutilStat {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) path: Bytes,
    /// Go's `FileMode`.
    #[prost(uint32, tag = "2")]
    pub(super) mode: u32,
    #[prost(int64, tag = "5")]
    pub(super) size: i64,
    #[prost(int64, tag = "6")]
    pub(super) mtime: i64,
    /// Target of a symbolic link, or first path of the file for a hard link.
    #[prost(bytes = "bytes", tag = "7")]
    pub(super) link: Bytes,
    #[prost(int64, tag = "8")]
    pub(super) major: i64,
    #[prost(int64, tag = "9")]
    pub(super) minor: i64,
    #[prost(message, repeated, tag = "10")]
    pub(super) xattrs: Vec<StatXattr>,
}

/// An entry of the map of extended attributes. Names are bytes as well.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatXattr {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

impl FsutilPacket {
    fn of(kind: PacketKind) -> Self {
        Self { kind: kind.into(), ..Self::default() }
    }

    pub(super) fn stat(stat: FsutilStat) -> Self {
        Self { stat: Some(stat), ..Self::of(PacketKind::Stat) }
    }

    /// Creates the packet that follows the last entry.
    pub(super) fn end_of_stats() -> Self {
        Self::of(PacketKind::Stat)
    }

    /// Creates a packet with a part of a file; an empty part ends the file.
    pub(super) fn data(id: u32, data: Bytes) -> Self {
        Self { id, data, ..Self::of(PacketKind::Data) }
    }

    pub(super) fn fin() -> Self {
        Self::of(PacketKind::Fin)
    }

    pub(super) fn error(text: String) -> Self {
        Self { data: text.into(), ..Self::of(PacketKind::Err) }
    }
}

/// Handler of file sync requests.
pub(super) trait FileSync: Send + Sync + 'static {
    type Packets: Stream<Item = Result<FsutilPacket, Status>> + Send + 'static;

    fn diff_copy(
        &self,
        metadata: &MetadataMap,
        requests: Streaming<FsutilPacket>,
    ) -> Result<Self::Packets, Status>;
}

pub(super) struct FileSyncServer<T>(Arc<T>);

impl<T> Clone for FileSyncServer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: FileSync> FileSyncServer<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Arc::new(inner))
    }
}

impl<T> tonic::server::NamedService for FileSyncServer<T> {
    const NAME: &'static str = "moby.filesync.v1.FileSync";
}

impl<T: FileSync> tower::Service<http::Request<tonic::body::Body>> for FileSyncServer<T> {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, GrpcResponse>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().path() != "/moby.filesync.v1.FileSync/DiffCopy" {
                return Ok(Status::unimplemented("only DiffCopy is served").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(PacketCodec).max_decoding_message_size(MESSAGE_LIMIT);
            Ok(grpc.streaming(DiffCopyMethod(inner), request).await)
        })
    }
}

struct DiffCopyMethod<T>(Arc<T>);

impl<T: FileSync> tonic::server::StreamingService<FsutilPacket> for DiffCopyMethod<T> {
    type Response = FsutilPacket;
    type ResponseStream = T::Packets;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<FsutilPacket>>) -> Self::Future {
        let (metadata, _, requests) = request.into_parts();
        let answer = self.0.diff_copy(&metadata, requests).map(Response::new);
        Box::pin(std::future::ready(answer))
    }
}

#[derive(Clone, Copy, Default)]
struct PacketCodec;

impl Codec for PacketCodec {
    type Encode = FsutilPacket;
    type Decode = FsutilPacket;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

/// Packets that are ready at the same time are sent as one HTTP/2 write of about this many bytes.
const BATCH: usize = 128 << 10;

impl Encoder for PacketCodec {
    type Item = FsutilPacket;
    type Error = Status;

    fn encode(&mut self, packet: FsutilPacket, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        packet.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(2 * BATCH, BATCH)
    }
}

impl Decoder for PacketCodec {
    type Item = FsutilPacket;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<FsutilPacket>, Status> {
        FsutilPacket::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_what_fsutil_reads() {
        use bollard_buildkit_proto::fsutil::types::Packet as Theirs;
        let stat = FsutilStat {
            path: Bytes::from_static(b"a/b"),
            mode: 0o644,
            size: 5,
            mtime: 7,
            link: Bytes::from_static(b"c"),
            major: 1,
            minor: 2,
            xattrs: vec![StatXattr { name: Bytes::from_static(b"user.a"), value: Bytes::from_static(b"1") }],
        };
        let theirs = Theirs::decode(FsutilPacket::stat(stat).encode_to_vec().as_slice()).unwrap();
        assert_eq!(theirs.r#type, 0);
        let stat = theirs.stat.unwrap();
        assert_eq!((stat.path.as_str(), stat.mode, stat.size, stat.mod_time), ("a/b", 0o644, 5, 7));
        assert_eq!((stat.linkname.as_str(), stat.devmajor, stat.devminor), ("c", 1, 2));
        assert_eq!(stat.xattrs["user.a"], b"1");
        let data =
            Theirs::decode(FsutilPacket::data(9, Bytes::from_static(b"xy")).encode_to_vec().as_slice())
                .unwrap();
        assert_eq!((data.r#type, data.id, data.data), (2, 9, b"xy".to_vec()));
    }
}
