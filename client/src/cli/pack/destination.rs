//! Destinations of a pack: a file, or a room that receives the content or an archive.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_pack::PackedImage;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::value::Reference;

use super::report::PackView;
use super::{PackArgs, PackPlan, check_room_tag, failure, print_summary, room_file, send};
use crate::cli::{GlobalArgs, connect};
use crate::client::{ArchiveDestination, ArchiveSource, Client};
use crate::error::Failure;
use crate::progress::TransferMeter;
use crate::{output, task};

pub(super) enum PackDestination {
    /// An archive in a file, made without contacting a room.
    File(PathBuf),
    /// An image that the room assembles from the content of the directory; only content that it lacks is sent.
    RoomContent(RoomImage),
    /// An image that is sent as one archive, because the layers of its base are files of this machine.
    RoomArchive(RoomImage),
}

/// Name of an image in the room, and the copies of its archive.
pub(super) struct RoomImage {
    tag: Reference,
    /// File of room storage that receives the archive too.
    room_path: Option<String>,
    /// Local file that receives the archive too.
    file: Option<PathBuf>,
}

impl PackDestination {
    /// Decides by the flags alone, with no request to the room.
    pub(super) fn from_args(
        args: &PackArgs,
        tag: Option<&Reference>,
        globals: &GlobalArgs,
    ) -> Result<Self, Failure> {
        let file = args.output.clone();
        file.iter().try_for_each(|file| output::check_new_file("--output", file))?;
        if let Some(file) = file.clone().filter(|_| globals.room.is_none() && globals.addr.is_none()) {
            if args.room_path.is_some() {
                return Err(Failure::usage("--room-path needs a room: give --room too"));
            }
            return Ok(Self::File(file));
        }
        let tag = tag.cloned().ok_or_else(|| {
            Failure::usage("--tag is needed: an image of the room has a name")
                .hint("or write an archive to a file with -o FILE, which needs no room")
        })?;
        let room_path =
            args.room_path.as_deref().map(|path| room_file("--room-path", path, &tag)).transpose()?;
        let image = RoomImage { tag, room_path, file };
        Ok(if args.base.is_some() { Self::RoomArchive(image) } else { Self::RoomContent(image) })
    }
}

impl RoomImage {
    /// Connects to the room that is to receive the image.
    async fn connect(&self, globals: &GlobalArgs) -> Result<Client, Failure> {
        let client = connect(globals).await?;
        check_room_tag(&client, "--tag", &self.tag).await?;
        Ok(client)
    }
}

/// Packs the directory and writes its archive to `file`.
pub(super) async fn write_to_file(
    mut plan: PackPlan,
    file: &Path,
    globals: &GlobalArgs,
) -> Result<PackView, Failure> {
    plan.open_base(None, globals).await?;
    pack_to_file(&plan, file).await
}

/// Sends the content that the room lacks; the room assembles the image.
pub(super) async fn send_content(
    mut plan: PackPlan,
    image: RoomImage,
    globals: &GlobalArgs,
) -> Result<PackView, Failure> {
    let client = image.connect(globals).await?;
    plan.options.walk.written.extend(send::kept_archive(&client, image.room_path.as_deref()).await?);
    let written = match &image.file {
        Some(file) => Some(pack_to_file(&plan, file).await?),
        None => None,
    };
    let scanned = send::scan(plan.path, plan.options.walk_options()).await?;
    if written.is_none() {
        print_summary(&scanned.summary, false);
    }
    let destination = Destination::Tag(image.tag.to_string());
    let sent = send::send(&client, &scanned, destination, Some(&plan.options), image.room_path).await?;
    let mut view = match written {
        Some(view) if view.digest != sent.result.digest => {
            let message = "the directory changed between the file and the room";
            return Err(
                Failure::failed(ErrorCode::PackChanged, message).hint("pack again when nothing writes to it")
            );
        }
        Some(view) => view,
        None => PackView::from_room(&scanned.summary, &sent.result),
    };
    view.set_upload_result(sent);
    Ok(view)
}

/// Packs the directory on top of its base and sends the whole archive.
pub(super) async fn send_archive(
    mut plan: PackPlan,
    image: RoomImage,
    globals: &GlobalArgs,
) -> Result<PackView, Failure> {
    let client = image.connect(globals).await?;
    plan.options.walk.written.extend(send::kept_archive(&client, image.room_path.as_deref()).await?);
    plan.open_base(Some(&client), globals).await?;
    let packed = plan.pack().await?;
    if let Some(file) = &image.file {
        write(&packed, file).await?;
    }
    let mut view = PackView::new(&packed, image.file.as_deref());
    let meter = TransferMeter::new("sending", packed.archive_size());
    let counted = meter.clone();
    let source: ArchiveSource = Box::new(move |out| packed.write_archive(&mut counted.metered(out)));
    let destination = ArchiveDestination { tag: Some(image.tag.to_string()), room_path: image.room_path };
    let loaded = meter.during(Box::pin(client.load_image(destination, source))).await?;
    output::note(&format!(
        "sent {} ({} of it already in the room)",
        output::size(loaded.size_bytes),
        output::size(loaded.reused_bytes)
    ));
    view.set_archive_result(loaded);
    Ok(view)
}

async fn pack_to_file(plan: &PackPlan, file: &Path) -> Result<PackView, Failure> {
    let packed = plan.pack().await?;
    write(&packed, file).await?;
    Ok(PackView::new(&packed, Some(file)))
}

/// Writes the archive to a file on a blocking thread.
async fn write(packed: &Arc<PackedImage>, file: &Path) -> Result<(), Failure> {
    let (writing, path) = (Arc::clone(packed), file.to_owned());
    let writing = task::blocking("archive", move || writing.write_to_file(&path));
    let written = TransferMeter::wait_for("writing", writing).await?;
    written.map_err(|error| failure(&error))?;
    output::note(&format!("wrote {} ({})", file.display(), output::size(packed.archive_size())));
    Ok(())
}
