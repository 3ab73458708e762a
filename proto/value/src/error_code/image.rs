//! Error codes of images, of the room's registry and of other registries.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! image_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Image "Images and registries" {
                ImageNotFound = "image_not_found", NotFound, No,
                    "The room, or the registry that the name gives, has no such image. Check the name, or build, load or pull the image first.";
                AttestationNotFound = "attestation_not_found", NotFound, No,
                    "No statement of this kind is attached to the image. Images that a build makes have provenance; other images have what their registry or their tools attached.";
                ForeignRegistry = "foreign_registry", InvalidArgument, No,
                    "The image name is of another registry, and the operation works on images of the room. Pack, load or pull the image into the room first.",
                    hint "pack or load the image into the room first";
                RoomRegistry = "room_registry", InvalidArgument, No,
                    "The source or target of a transfer is the room's own registry. Tag the image instead of transferring it.",
                    hint "`hearth images tag` gives an image of the room another name";
                BlobMissing = "blob_missing", FailedPrecondition, No,
                    "A manifest refers to content that the room does not have. Send the content before the manifest.";
                ContentDamaged = "content_damaged", FailedPrecondition, No,
                    "Stored content no longer has its digest. It is in quarantine and not served; the room takes it again when its image is pushed, pulled or built.",
                    hint "push, pull or build the images again that have this content, and check the disk";
                BlobMismatch = "blob_mismatch", FailedPrecondition, No,
                    "Content does not have the digest or size under which it was sent or fetched. Send it again, or report it to the registry's operator.";
                InvalidManifest = "invalid_manifest", InvalidArgument, No,
                    "A manifest or index is malformed, too large, too deeply nested, or lists too much. Make the image again with a current tool.";
                InvalidArchive = "invalid_archive", InvalidArgument, No,
                    "The archive is not a valid OCI or Docker archive with one image. Make it again with `hearth pack` or `docker save`.";
                ArchiveTruncated = "archive_truncated", InvalidArgument, No,
                    "The archive ends before it is complete. Send it again; nothing of it was kept.",
                    hint "check that the archive is complete, and send it again; nothing of it was kept";
                PlatformMismatch = "platform_mismatch", FailedPrecondition, No,
                    "The image is not for the platform that is needed. Choose a platform that it has, or build or pull it for the one that is needed.",
                    hint "choose a platform that the image has, or build or pull the image for the one that is needed";
                LayerMismatch = "layer_mismatch", FailedPrecondition, No,
                    "The layers of an image are not those that its config lists. Do not use the image; build or pull it again.",
                    hint "the config of this image does not belong to its layers, so do not use the image; build or pull it again";
                LayerTooLarge = "layer_too_large", FailedPrecondition, No,
                    "A layer, or all layers together, unpack to more than the limits of the room allow. Make the image smaller, or raise the limits.";
                InvalidLayer = "invalid_layer", FailedPrecondition, No,
                    "A layer is not a valid tar archive, or is to be fetched from a URL outside the registry. Make the image again.";
                ImageUnusable = "image_unusable", FailedPrecondition, No,
                    "The container runtime cannot unpack or run the image. The message has the cause.";
                ImageNotPinned = "image_not_pinned", FailedPrecondition, No,
                    "A revision mounts an image without a recorded digest. Deploy it again with all its `--image-mount` flags.",
                    hint "deploy it again with all its --image-mount flags";
                ImageTooLarge = "image_too_large", ResourceExhausted, No,
                    "The image has more bytes than one image may have in this room. Make it smaller, or raise the limit.",
                    hint "make the image smaller, or raise max_bytes_per_image of [uploads] in the daemon's configuration";
                QuotaExceeded = "quota_exceeded", ResourceExhausted, No,
                    "The caller, or all callers together, hold as many bytes as they may. Remove files, images and packs, or raise the quota.",
                    hint "`hearth system df` shows what is held; remove files and images, or raise [uploads] in the daemon's configuration";
                NoSpace = "no_space", ResourceExhausted, Depends,
                    "The disk has no free space for the operation. Remove images and files that are not needed, or make the disk larger.",
                    hint "remove images that are not needed, or give the state directory more space";
                MediaTypeUnsupported = "media_type_unsupported", FailedPrecondition, No,
                    "A registry returned content of a type that is neither an OCI nor a Docker image. Check the name.";
                RegistryDenied = "registry_denied", PermissionDenied, No,
                    "A registry refuses the request: credentials are missing, wrong, or not sufficient. Give others with `--cred`.";
                RegistryBusy = "registry_busy", Unavailable, Yes,
                    "A registry limits the number of requests, and the limit is reached. Wait, give credentials, or use a mirror.",
                    hint "the registry limits requests: wait, give credentials, or use a mirror";
                RegistryRefused = "registry_refused", FailedPrecondition, Depends,
                    "A registry answered with an error. The message has its answer.";
                RegistryUnreachable = "registry_unreachable", Unavailable, Yes,
                    "A registry does not answer. Check its name and the network, or name a mirror.";
                RegistryUntrusted = "registry_untrusted", FailedPrecondition, No,
                    "The TLS certificate of a registry has no issuer that the machine trusts. Add the issuer to the system's certificates, or set SSL_CERT_FILE.",
                    hint "add the issuer to the certificates that the system trusts (update-ca-certificates), or set SSL_CERT_FILE to a file with the issuer's certificate";
                RegistryAuthRefused = "registry_auth_refused", FailedPrecondition, No,
                    "A registry asks to authenticate in a way, or at an address, to which no credentials are sent. Check that the registry is the right one.";
                RegistryRedirectRefused = "registry_redirect_refused", FailedPrecondition, No,
                    "A registry redirects to an address that it may not redirect to, such as one of an internal network. An operator who trusts the registry can configure it as its own mirror.";
                RegistryAddressRefused = "registry_address_refused", FailedPrecondition, No,
                    "The name of a registry resolves to an address of an internal network. An operator can allow it.",
                    hint "an operator can allow it: configure the registry as its own mirror (--registry-mirror HOST=URL), add it to the file of registry credentials, or list its address in `[builds.egress] allow`";
                RegistryAnswerInvalid = "registry_answer_invalid", FailedPrecondition, No,
                    "The answer of a registry is malformed or too large. Check that the address is the one of a registry.";
                RegistryCredentials = "registry_credentials", Internal, No,
                    "The daemon's file of registry credentials cannot be read or is malformed. An operator corrects the file.";
            }
        }
    };
}
