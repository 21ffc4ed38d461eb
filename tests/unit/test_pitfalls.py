"""What broke in other engines, and which tests of ours hold each of it: layers, clients and runtimes."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Final

import pytest

from layerfs.testing.layer_cases import CASES

ROOT: Final = Path(__file__).parent.parent.parent

# A case of the contract, which every driver's test runs.
CASE: Final = "case "

ONE_RESULT_FOR_EVERY_LAYER: Final[dict[str, tuple[str, ...]]] = {
    "whiteout before or after its sibling": (
        "case whiteout_before_its_sibling", "case whiteout_after_its_sibling",
    ),
    "a whiteout of a directory together with the directory": (
        "case whiteout_then_a_directory_of_the_name", "case a_directory_then_a_whiteout_of_its_name",
        "case a_directory_its_whiteout_and_then_its_children",
        "case a_whiteout_of_a_directory_whose_child_comes_without_it",
    ),
    "an opaque marker before or after children, without an entry, at the root": (
        "case opaque_before_the_children", "case opaque_after_the_children",
        "case opaque_in_a_directory_without_an_entry", "case opaque_at_the_root",
    ),
    "children without entries for their parents, then a marker above": (
        "case opaque_above_children_whose_parents_have_no_entry",
    ),
    "whiteout of a missing path": ("case whiteout_of_nothing", "case whiteout_in_a_base_layer"),
    "whiteouts of no name, of . and of ..": (
        "case nameless_whiteout", "case whiteout_of_dot", "case whiteout_of_dot_dot",
    ),
    "aufs's own files": ("case aufs_hard_links",),
    "a whiteout that is a directory, a link, or has data": (
        "case a_whiteout_that_is_a_directory", "case a_whiteout_that_is_a_symlink",
        "case a_whiteout_with_data",
        "tests/unit/test_extract.py::test_what_is_odd_is_warned_of_and_strict_mode_refuses_it",
    ),
    "a parent's time when a child comes or goes": ("case the_times_of_a_parent_whose_child_comes_or_goes",),
    "a character device 0:0": ("case a_device_that_would_be_a_whiteout",),
    "hard link to a file of a lower layer": (
        "case hard_link_to_a_file_of_a_lower_layer", "case hard_link_to_a_file_two_layers_down",
    ),
    "hard link before its target, and a dangling one": (
        "case hard_link_before_its_target", "case hard_link_to_nothing",
    ),
    "hard link to a whited-out path, to a directory, to itself": (
        "case hard_link_to_a_deleted_file", "case hard_link_to_a_directory", "case hard_link_to_itself",
    ),
    "hard link with attributes or data of its own": (
        "case hard_link_with_attributes_of_its_own",
        "tests/unit/test_extract.py::test_a_hard_link_changes_nothing_of_its_file",
        "tests/unit/test_tar_reader.py::test_data_of_a_hard_link_is_skipped",
    ),
    "an entry under a directory that is a symlink below": (
        "case an_entry_below_a_symlink_of_a_lower_layer", "case a_whiteout_below_a_symlink_of_a_lower_layer",
    ),
    "escaping symlink as a parent, absolute names, ..": (
        "case a_symlink_that_leads_out_as_a_parent", "case absolute_and_dotted_names",
        "tests/unit/test_extract.py::test_what_is_odd_is_warned_of_and_strict_mode_refuses_it",
        "tests/fault/test_swapped_directories.py::test_nothing_outside_changes_or_comes_inside",
    ),
    "symlink loop, a file where a parent is needed": (
        "case a_symlink_loop_as_a_parent", "case a_file_where_a_parent_is_needed",
    ),
    "an entry for the root, a root that is no directory, an empty name": (
        "case an_entry_for_the_root", "case a_root_that_is_no_directory",
        "tests/unit/test_tar_reader.py::test_an_entry_without_a_name_or_a_link_without_a_target_is_an_error",
    ),
    "missing parents": ("case missing_parents",),
    "duplicate paths": (
        "case a_path_twice",
        "tests/unit/test_extract.py::test_what_is_odd_is_warned_of_and_strict_mode_refuses_it",
    ),
    "a directory over a directory, anything else": (
        "case a_directory_over_a_directory", "case a_file_over_a_directory", "case a_directory_over_a_file",
        "case a_directory_over_a_symlink", "case a_symlink_over_a_directory",
    ),
    "overlayfs's attributes": (
        "case overlayfs_attributes",
        "tests/unit/test_extract.py::test_what_would_steer_overlayfs_is_dropped_with_a_warning",
        "tests/fault/test_fuse_hostile.py::test_a_redirect_leads_nowhere_but_into_the_layers_below",
    ),
    "labels, capabilities, access lists, empty values, LIBARCHIVE, refusals": (
        "case extended_attributes", "case an_xattr_that_nothing_holds",
        "tests/unit/test_extract.py::test_labels_of_selinux_are_dropped_silently",
        "tests/unit/test_tar_reader.py::test_xattrs_of_libarchive_are_decoded_and_the_plain_form_wins",
    ),
    "times": (
        "case times",
        "tests/unit/test_extract.py::test_a_time_that_the_file_system_does_not_hold_is_clamped_with_a_warning",
    ),
    "numbers out of range, bad checksums, truncation, malformed headers": (
        "tests/unit/test_tar_reader.py::test_numbers_out_of_range_are_errors_that_name_the_entry",
        "tests/unit/test_tar_reader.py::test_a_damaged_header_is_an_error_with_its_offset",
        "tests/unit/test_tar_reader.py::test_truncation_anywhere_is_an_error",
        "tests/unit/test_tar_reader.py::test_malformed_records_are_errors",
        "tests/unit/test_tar_reader.py::test_data_after_one_zero_block_is_an_error",
        "tests/property/test_fuzz.py::test_of_new_inputs",
    ),
    "mode with type bits": ("tests/unit/test_tar_reader.py::test_type_bits_of_a_mode_are_masked_away",),
    "types 7, V, g and unknown; the size of PAX": (
        "tests/unit/test_tar_reader.py::test_a_contiguous_file_is_a_file",
        "tests/unit/test_tar_reader.py::test_volume_labels_and_global_headers_create_nothing",
        "tests/unit/test_tar_reader.py::test_an_unknown_type_is_a_file_with_a_warning",
        "tests/unit/test_tar_reader.py::test_records_replace_the_fields_of_the_next_entry_alone",
    ),
    "sparse files": (
        "tests/unit/test_tar_reader.py::test_all_four_forms_of_sparse_files_are_read",
        "tests/fault/test_bombs.py::test_a_file_that_claims_terabytes_of_holes_costs_nothing",
    ),
    "no end marker, an empty layer, bytes after the end": (
        "case an_empty_layer",
        "tests/unit/test_tar_reader.py::test_no_end_marker_an_empty_stream_and_one_zero_block_are_accepted",
        "tests/unit/test_tar_reader.py::test_zeros_after_the_end_are_read_and_other_bytes_are_warned_of",
    ),
    "gzip members, zstd frames, trailing garbage": (
        "tests/unit/test_compression.py::test_several_members_an_empty_one_and_nuls_at_the_end_are_one_stream",
        "tests/unit/test_compression.py::test_other_data_after_the_end_is_an_error",
        "tests/unit/test_compression.py::test_truncation_anywhere_is_an_error_with_its_offset",
        "tests/unit/test_compression.py::test_a_flipped_bit_is_an_error",
    ),
    "media type against content": (
        "tests/unit/test_compression.py::test_content_decides_what_a_stream_is",
        "tests/unit/test_store.py::"
        "test_content_decides_how_a_layer_is_compressed_and_a_wrong_media_type_is_told",
    ),
    "wrong diff id, wrong size, fewer diff ids than layers": (
        "tests/unit/test_layers.py::test_a_wrong_diff_id_leaves_nothing",
        "tests/unit/test_transports.py::"
        "test_refuses_a_document_with_another_digest_and_a_blob_with_another_size",
        "tests/unit/test_images.py::test_an_image_whose_parts_do_not_fit_is_refused",
    ),
    "a path longer than 4096 bytes": ("case a_path_longer_than_4096_bytes", "case a_name_of_256_bytes"),
    "odd names": ("case odd_names",),
    "budgets": (
        "tests/fault/test_bombs.py::test_a_bomb_is_refused_with_little_memory",
        "tests/fault/test_bombs.py::test_documents_are_bounded",
        "tests/fault/test_bombs.py::test_limits_are_read_from_text",
    ),
}  # fmt: skip

CLIENTS_AND_RUNTIMES: Final[dict[str, tuple[str, ...]]] = {
    "a bearer realm is no private place": (
        "tests/fault/test_registry_faults.py::test_credentials_go_to_no_odd_token_server",
        "tests/unit/test_registry_tokens.py::test_what_a_registry_may_not_name_gets_nothing",
    ),
    "credentials never cross hosts": (
        "tests/fault/test_registry_faults.py::test_a_redirect_to_another_host_takes_no_credentials_along",
        "tests/fault/test_registry_faults.py::test_another_host_that_wants_credentials_gets_none",
    ),
    "foreign layers get none": (
        "tests/fault/test_registry_faults.py::test_the_url_of_a_foreign_layer_gets_no_credentials",
    ),
    "manifests are bounded, of one meaning and of the Content-Type": (
        "tests/unit/test_registry_manifests.py::test_documents_are_bounded",
        "tests/unit/test_registry_manifests.py::test_a_document_of_two_meanings_is_refused",
    ),
    "User by number": (
        "tests/unit/test_runtime_users.py::test_users_are_found_as_docker_finds_them",
        "tests/unit/test_runtime_users.py::test_what_is_not_there_is_refused",
    ),
    "passwd and group": (
        "tests/unit/test_runtime_users.py::test_the_hosts_files_are_never_read",
        "tests/unit/test_runtime_users.py::test_a_file_that_never_ends_is_refused",
        "tests/unit/test_runtime_scope.py::test_only_regular_files_are_read_and_only_so_much",
    ),
    "WorkingDir": ("tests/unit/test_runtime_launch.py::test_the_working_directory_is_made_inside",),
    "Env without =": ("tests/unit/test_runtime_process.py::test_variables_have_defaults_and_the_users_win",),
    "labels never steer us": ("tests/unit/test_runtime_process.py::test_labels_of_an_image_steer_nothing",),
    "/proc, /dev and /sys as symlinks": (
        "tests/unit/test_runtime_launch.py::test_a_symlink_in_the_place_of_a_kernel_directory_is_refused",
    ),
    "no descriptor of ours": (
        "tests/unit/test_runtime_launch.py::test_no_descriptor_of_ours_reaches_it",
        "tests/fault/test_runtime_hostile.py::test_exec_hands_no_descriptor_on",
    ),
    "our own program": (
        "tests/fault/test_runtime_hostile.py::test_our_own_program_is_never_the_containers",
        "tests/fault/test_runtime_hostile.py::"
        "test_the_springboard_holds_where_a_look_at_the_name_came_too_early",
        "tests/fault/test_runtime_hostile.py::test_exec_shows_the_container_nothing_of_our_program",
        "tests/fault/test_runtime_hostile.py::test_exec_is_not_led_to_our_program_by_names_that_change",
    ),
    "copying in and out while directories are swapped": (
        "tests/fault/test_swapped_directories.py::test_nothing_outside_changes_or_comes_inside",
        "tests/unit/test_containers.py::test_links_in_the_tree_never_lead_out",
        "tests/unit/test_files.py::test_what_takes_a_files_place_meanwhile_is_not_opened",
    ),
    "mounts are detached only with the ledger": (
        "tests/unit/test_mounting.py::test_a_mount_in_use_is_not_detached_unless_lazily",
        "tests/unit/test_removing.py::test_a_mounted_layer_stays",
        "tests/unit/test_layers.py::test_what_a_dead_process_held_is_taken_down",
    ),
    "mounts are private": (
        "tests/unit/test_mounting.py::test_a_mount_below_a_shared_one_is_private",
        "tests/unit/test_runtime_launch.py::test_nothing_is_mounted_anywhere_during_or_after",
        "tests/unit/test_runtime_launch.py::test_only_the_containers_mounts_are_visible",
    ),
    "files of a store are private": (
        "tests/fault/test_private_store.py::test_a_store_is_private_after_whatever_was_done",
        "layerfs/testing/life.py::test_what_lies_below_the_drivers_directory_is_for_nobody_else",
    ),
}  # fmt: skip

LINES: Final = ONE_RESULT_FOR_EVERY_LAYER | CLIENTS_AND_RUNTIMES


@functools.cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("line", LINES)
def test_each_line_has_tests_that_are_there(line: str) -> None:
    for name in LINES[line]:
        if name.startswith(CASE):
            assert name.removeprefix(CASE) in {case.name for case in CASES}
            continue
        path, _, function = name.partition("::")
        assert function in names_in(path), name
